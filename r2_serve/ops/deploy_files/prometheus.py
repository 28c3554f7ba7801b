"""Monitoring as files: Prometheus' configuration and rules, and what Grafana provisions itself from.

Two jobs: `r2` asks the endpoint, where one replica answers for all of them (`r2_serve.cluster.metrics`); `ray` asks every node's agent, of
which Ray's head keeps a list up to date in a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.alerts import alerts, rule_groups
from r2_serve.ops.deploy_files.dashboard import dashboard
from r2_serve.ops.deploy_files.text import documents
from r2_serve.serve_config import ServeConfig

INTERVAL = "15s"
RULES = "r2_alerts.yml"


@dataclass(frozen=True)
class Target:
    """Where Prometheus asks."""

    endpoint: str
    key_file: str | None
    ray_targets: str

    @classmethod
    def of(cls, config: ServeConfig, endpoint: str | None, key_file: str | None, ray_targets: str) -> Self:
        """Raises: ConfigError where the endpoint has keys and none is named."""
        if key_file is None and has_keys(config):
            message = "the endpoint asks for a key: make one for Prometheus (`r2-serve keys new --name prometheus`), store it in a file"
            raise ConfigError(f"{message} that Prometheus can read, and name the file with --key-file")
        host = "127.0.0.1" if config.http_host in ("0.0.0.0", "::") else config.http_host  # noqa: S104  # nosec B104
        return cls(endpoint or f"{host}:{config.http_port}", key_file, ray_targets)


def has_keys(config: ServeConfig) -> bool:
    return bool(config.router.server.keys_file or config.router.server.api_keys_env)


def write_monitoring(
    config: ServeConfig, out: Path, target: Target, max_usd_per_hour: float | None
) -> list[Path]:
    """Writes every file under `out`, which Grafana and Prometheus may read where it is. Returns their paths."""
    grafana = out.resolve() / "grafana"
    texts = {
        "prometheus.yml": documents([prometheus_config(target)]),
        RULES: documents([rule_groups(alerts(config, max_usd_per_hour))]),
        "grafana/dashboards/r2.json": json.dumps(dashboard(), indent=1) + "\n",
        "grafana/provisioning/dashboards/r2.yaml": documents([_dashboard_provider(grafana / "dashboards")]),
        "grafana/provisioning/datasources/r2.yaml": documents([_DATA_SOURCE]),
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def prometheus_config(target: Target) -> dict[str, Any]:
    router: dict[str, Any] = {
        "job_name": "r2",
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [target.endpoint]}],
    }
    if target.key_file is not None:
        router["authorization"] = {"type": "Bearer", "credentials_file": target.key_file}
    return {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [RULES],
        "scrape_configs": [router, {"job_name": "ray", "file_sd_configs": [{"files": [target.ray_targets]}]}],
    }


def _dashboard_provider(directory: Path) -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [{"name": "R2", "type": "file", "options": {"path": str(directory)}}],
    }


_DATA_SOURCE = {
    "apiVersion": 1,
    "datasources": [
        {
            "name": "Prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "http://127.0.0.1:9090",
            "isDefault": True,
        }
    ],
}
