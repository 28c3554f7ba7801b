"""Monitoring: scraping, alert rules and a dashboard, as files or as Kubernetes objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.http.metrics import SECONDS
from r2_serve.ops.deploy_files.dashboard import dashboard
from r2_serve.ops.deploy_files.needs import replicas_of
from r2_serve.ops.deploy_files.templates import Object, documents, render, render_all
from r2_serve.serve_config import ServeConfig

SLOW_SHARE = 0.8
"""Share of the deadline above which the slowest requests raise an alert."""


def has_keys(config: ServeConfig) -> bool:
    """Whether the endpoint asks for a client key."""
    return bool(config.router.server.keys_file or config.router.server.api_keys_env)


def prometheus_config(
    config: ServeConfig, endpoint: str | None, key_file: str | None, ray_targets: str
) -> Object:
    """Prometheus' configuration. Raises: ConfigError if the endpoint asks for a key and no file is named.

    `endpoint` is the router's HOST:PORT (None: the config's), `key_file` a file with a client key on
    Prometheus' machine, and `ray_targets` the file in which Ray's head lists the nodes.
    """
    if key_file is None and has_keys(config):
        raise ConfigError(
            "the endpoint asks for a key: make one for Prometheus (`r2-serve keys new --name prometheus`), "
            "store it in a file that Prometheus can read, and name the file with --key-file"
        )
    is_every_address = config.http_host in ("0.0.0.0", "::")  # noqa: S104  # nosec B104
    endpoint = endpoint or f"{'127.0.0.1' if is_every_address else config.http_host}:{config.http_port}"
    return render("prometheus.yaml", endpoint=endpoint, key_file=key_file, ray_targets=ray_targets)


def alert_rules(config: ServeConfig, max_usd_per_hour: float | None = None) -> Object:
    """A rule file with bounds from `config`; it has an alert on spend only if a bound is given."""
    max_queued, deadline_s = config.router.server.max_queued, config.routing.limits.deadline_s
    return render(
        "alerts.yaml",
        replicas=[
            {"application": r.application, "deployment": r.deployment, "fewest": f"vector({r.min_replicas})"}
            for r in replicas_of(config)
        ],
        max_queued=max_queued,
        half_queue=f"{max_queued / 2:g}",
        deadline_s=f"{deadline_s:g}",
        slow_s=f"{SLOW_SHARE * min(deadline_s, SECONDS[-1]):g}",
        max_usd_per_hour=None if max_usd_per_hour is None else f"{max_usd_per_hour:g}",
    )


def monitoring_files(out: Path, prometheus: Object, rules: Object) -> dict[str, str]:
    """The files for Prometheus and Grafana by name, which work where they are: in the directory `out`."""
    grafana = render("grafana.yaml", directory=str(out.resolve() / "grafana/dashboards"))
    return {
        "prometheus.yml": documents([prometheus]),
        "r2_alerts.yml": documents([rules]),
        "grafana/dashboards/r2.json": _dashboard_text(),
        "grafana/provisioning/dashboards/r2.yaml": documents([grafana["dashboards"]]),
        "grafana/provisioning/datasources/r2.yaml": documents([grafana["datasources"]]),
    }


def operator_objects(
    config: ServeConfig, rules: Object, name: str, namespace: str, key_secret: str
) -> list[Object]:
    """PodMonitor of Ray's nodes, ScrapeConfig of the endpoint, PrometheusRule, ConfigMap of the dashboard.

    `name` and `namespace` are the RayService's; the `key` of `key_secret` is a client key for Prometheus.
    """
    return render_all(
        "operator.yaml",
        name=name,
        namespace=namespace,
        port=config.http_port,
        key_secret=key_secret if has_keys(config) else None,
        rules=rules,
        dashboard=_dashboard_text(),
    )


def write_files(out: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes each text under its name in the directory `out`. Returns the paths."""
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def _dashboard_text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"
