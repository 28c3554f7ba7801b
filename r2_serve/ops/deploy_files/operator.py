"""Monitoring on Kubernetes: the same scraping, rules and dashboard as objects of Prometheus' operator and Grafana's sidecar.

Source: prometheus-operator API, monitoring.coreos.com/v1 and v1alpha1 (ScrapeConfig: 0.65 and later).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from r2_serve.ops.deploy_files.alerts import alerts, rule_groups
from r2_serve.ops.deploy_files.dashboard import dashboard
from r2_serve.ops.deploy_files.pods import APP_LABEL
from r2_serve.ops.deploy_files.prometheus import INTERVAL, has_keys
from r2_serve.serve_config import ServeConfig


@dataclass(frozen=True)
class OperatorTarget:
    """The KubeRay service that is watched."""

    name: str
    namespace: str
    port: int
    key_secret: str


def operator_objects(
    config: ServeConfig, target: OperatorTarget, max_usd_per_hour: float | None
) -> list[dict[str, Any]]:
    """PodMonitor of Ray's nodes, ScrapeConfig of the endpoint, PrometheusRule, and the dashboard as a ConfigMap."""
    rules = rule_groups(alerts(config, max_usd_per_hour))
    panels = {"r2.json": json.dumps(dashboard(), indent=1) + "\n"}
    return [
        _object("monitoring.coreos.com/v1", "PodMonitor", target, spec=_ray_nodes(target)),
        _object(
            "monitoring.coreos.com/v1alpha1",
            "ScrapeConfig",
            target,
            spec=_endpoint(target, with_key=has_keys(config)),
        ),
        _object("monitoring.coreos.com/v1", "PrometheusRule", target, spec=rules),
        _object("v1", "ConfigMap", target, labels={"grafana_dashboard": "1"}, data=panels),
    ]


def _object(
    api: str, kind: str, target: OperatorTarget, *, labels: dict[str, str] | None = None, **content: Any
) -> dict[str, Any]:
    metadata = {
        "name": f"{target.name}-router",
        "namespace": target.namespace,
        "labels": {APP_LABEL: target.name, **(labels or {})},
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def _ray_nodes(target: OperatorTarget) -> dict[str, Any]:
    """Job `ray`, as Ray's own list of nodes calls it."""
    named = [{"targetLabel": "job", "replacement": "ray"}]
    return {
        "selector": {"matchLabels": {APP_LABEL: target.name, "ray.io/is-ray-node": "yes"}},
        "podMetricsEndpoints": [{"port": "metrics", "interval": INTERVAL, "relabelings": named}],
    }


def _endpoint(target: OperatorTarget, *, with_key: bool) -> dict[str, Any]:
    """One target, though several pods answer: each answers for all router replicas."""
    address = f"{target.name}-serve-svc.{target.namespace}.svc:{target.port}"
    spec: dict[str, Any] = {
        "staticConfigs": [{"targets": [address], "labels": {"job": "r2"}}],
        "metricsPath": "/metrics",
        "scrapeInterval": INTERVAL,
    }
    if with_key:
        spec["authorization"] = {"type": "Bearer", "credentials": {"name": target.key_secret, "key": "key"}}
    return spec
