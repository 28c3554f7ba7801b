"""Dashboard, alerts and scraping: every metric named exists, and Prometheus' own tools accept the files."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve.cluster.metrics import SILENT
from r2_serve.errors import ConfigError
from r2_serve.http.admission import Admission
from r2_serve.http.keys import KeyRing
from r2_serve.http.metrics import Metrics
from r2_serve.http.spend import Purses, SpendBook
from r2_serve.ops.deploy_files.dashboard import WINDOW, dashboard
from r2_serve.ops.deploy_files.monitoring import (
    alert_rules,
    monitoring_files,
    operator_objects,
    prometheus_config,
    write_files,
)
from r2_serve.ops.deploy_files.needs import replicas_of
from r2_serve.serve_config import ServeConfig
from tests.ops.test_kuberay import OPEN, TEXT, with_server
from tests.support.config_of import config_of

RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"
needs_promtool = pytest.mark.needs("promtool")


def config(text: str = OPEN) -> ServeConfig:
    return config_of(text)


def expressions() -> list[str]:
    """The queries of all panels and alerts, with Grafana's window spelled out."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    return [expr.replace(WINDOW, "1m") for expr in [*panels, *alerts(config(), 5).values()]]


def alerts(config: ServeConfig, max_usd_per_hour: float | None = None) -> dict[str, str]:
    """The expression of each alert by its name."""
    _, group = alert_rules(config, max_usd_per_hour)["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def num_recorded(config: ServeConfig) -> int:
    group, _ = alert_rules(config)["groups"]
    return len(group["rules"])


def names_in(exprs: list[str], prefix: str) -> set[str]:
    return {name for expr in exprs for name in re.findall(rf"\b{prefix}_[a-z0-9_]+", expr)}


def exposed_by_the_router() -> set[str]:
    """Names of samples, also of those that nothing has counted yet."""
    metrics = Metrics()
    metrics.watch(Admission(1, 1))
    metrics.watch_spend(Purses(SpendBook(None)), KeyRing())
    metrics.watch_models({})
    metrics.watch_cluster(dict, dict, bool)
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {
        family.name + suffix for family in metrics.registry.collect() for suffix in suffixes[family.type]
    } | {SILENT}


def exposed_by_ray() -> Iterator[str]:
    """Patterns of the names that the installed Ray makes metrics of; it is read, not imported."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    sources = [
        *(package / "serve/_private").glob("*.py"),
        package / "dashboard/modules/reporter/reporter_agent.py",
    ]
    suffixes = {"Counter": "_total", "Gauge": "", "Histogram": "_(bucket|sum|count)"}
    for source in sources:
        for kind, name in re.findall(
            r'\b(Counter|Gauge|Histogram)\(\s*(?:name=)?f?"([a-z_{}.()]+)"', source.read_text()
        ):
            yield "ray_" + re.sub(r"\{[^}]*\}", "[a-z]+", name) + suffixes[kind]


def exposed_by_vllm() -> set[str]:
    """Names under which Ray exports the metrics of the installed vLLM, whose source is read."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vllm")
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    kinds = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {
        f"ray_vllm_{name}{suffix}"
        for kind, name in re.findall(r'self\._(\w+)_cls\(\s*name="vllm:(\w+)"', source)
        for suffix in kinds[kind]
    }


def test_every_router_metric_in_a_panel_or_alert_exists() -> None:
    named = names_in(expressions(), "r2")
    assert named - exposed_by_the_router() == set()
    assert len(named) > 15


def test_every_ray_metric_in_a_panel_or_alert_exists_in_the_installed_ray() -> None:
    patterns = [re.compile(pattern) for pattern in exposed_by_ray()]
    named = {name for name in names_in(expressions(), "ray") if not name.startswith("ray_vllm_")}
    assert {name for name in named if not any(pattern.fullmatch(name) for pattern in patterns)} == set()
    assert len(named) > 10


def test_every_vllm_metric_in_a_panel_or_alert_exists_in_the_installed_vllm() -> None:
    named = names_in(expressions(), "ray_vllm")
    assert named - exposed_by_vllm() == set() and len(named) >= 6


def test_every_metric_of_the_router_has_a_panel() -> None:
    """Or the dashboard would be silent about something that we thought worth counting."""
    shown = names_in(expressions(), "r2")
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exposed_by_the_router()}
    unseen = {family for family in families if not any(name.startswith(family) for name in shown)}
    same = {"r2_model_rests", "r2_model_rest_left_seconds"}
    assert unseen == same, "r2_model_resting shows the same"


def test_panels_have_unique_numbers_do_not_overlap_and_use_the_chosen_source() -> None:
    made = json.loads(json.dumps(dashboard()))
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and taken.isdisjoint(cells), panel["title"]
        taken |= cells
    plots = [panel for panel in panels if panel["type"] != "row"]
    (variable,) = made["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in plots} == {"${" + variable["name"] + "}"}
    assert all(target["expr"] and target["legendFormat"] for panel in plots for target in panel["targets"])


def test_endpoint_with_keys_is_scraped_with_a_key_or_refused() -> None:
    with pytest.raises(ConfigError, match="--key-file"):
        prometheus_config(config(TEXT), None, None, RAY_TARGETS)
    made = prometheus_config(config(TEXT), "gateway:80", "/etc/prometheus/r2.key", RAY_TARGETS)
    router, ray = made["scrape_configs"]
    assert router["authorization"] == {"type": "Bearer", "credentials_file": "/etc/prometheus/r2.key"}
    assert router["static_configs"] == [{"targets": ["gateway:80"]}] and router["metrics_path"] == "/metrics"
    assert ray["file_sd_configs"] == [{"files": [RAY_TARGETS]}]


def test_prometheus_asks_the_endpoint_of_the_config_by_default() -> None:
    router = prometheus_config(config(), None, None, RAY_TARGETS)["scrape_configs"][0]
    assert router["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]


def test_alerts_take_their_bounds_from_the_config() -> None:
    limits = "limits: {max_cost_usd: 1"
    text = with_server(max_queued=10).replace(limits, f"{limits}, deadline_s: 50")
    rules = alerts(config(text))
    assert rules["R2QueueFillsUp"].endswith("> 5") and rules["R2Slow"].endswith("> 40")
    assert "R2Spending" not in rules
    slow = alerts(config(OPEN.replace(limits, f"{limits}, deadline_s: 5000")))["R2Slow"]
    assert slow.endswith("> 480"), "beyond the longest bucket no quantile goes"
    assert alerts(config(), max_usd_per_hour=5).keys() - rules.keys() == {"R2Spending"}


def test_objects_for_the_operator_hold_the_same_rules_and_dashboard_and_select_the_pods() -> None:
    expected = alert_rules(config(TEXT))
    monitor, scrape, rules, panels = operator_objects(config(TEXT), expected, "r2", "ai", "key")
    assert rules["spec"] == expected
    assert json.loads(panels["data"]["r2.json"]) == dashboard()
    assert monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "r2"
    assert scrape["spec"]["staticConfigs"] == [
        {"targets": ["r2-serve-svc.ai.svc:8000"], "labels": {"job": "r2"}}
    ]
    assert scrape["spec"]["authorization"]["credentials"] == {"name": "key", "key": "key"}
    assert "authorization" not in operator_objects(config(), expected, "r2", "ai", "key")[1]["spec"]


# -- by Prometheus' own tool -----------------------------------------------------------------------------


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_accepts_configuration_and_rules(tmp_path: Path) -> None:
    prometheus = prometheus_config(config(), None, None, RAY_TARGETS)
    write_files(tmp_path, monitoring_files(tmp_path, prometheus, alert_rules(config(), 5)))
    output = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert f"{len(alerts(config(), 5)) + num_recorded(config())} rules found" in output


@needs_promtool
def test_prometheus_accepts_the_query_of_every_panel(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


CHAT = 'route="/v1/chat/completions"'


def started(application: str, deployment: str, replica: str) -> str:
    """The series that tells of one replica's start."""
    labels = f'application="{application}",deployment="{deployment}",replica="{replica}"'
    return f"ray_serve_deployment_replica_starts_total{{{labels}}}"


HEALTHY, WANTED = "ray_serve_deployment_replica_healthy", "ray_serve_autoscaling_target_replicas"
FINE: dict[str, str] = {
    **{
        f'{HEALTHY}{{application="{r.application}",deployment="{r.deployment}",replica="x"}}': "1x40"
        for r in replicas_of(config())
        if r.application != "r2" or r.deployment != "Router"
    },
    'up{job="r2"}': "1x40",
    f'r2_requests_total{{{CHAT},status="200"}}': "0+60x40",
    f'r2_requests_total{{{CHAT},status="503"}}': "0+1x40",
    'r2_requests_queued{replica="a"}': "100x40",
    'r2_requests_queued{replica="b"}': "20x40",
    f'r2_request_seconds_bucket{{{CHAT},le="60"}}': "0+60x40",
    f'r2_request_seconds_bucket{{{CHAT},le="120"}}': "0+60x40",
    f'r2_request_seconds_bucket{{{CHAT},le="+Inf"}}': "0+60x40",
    'r2_model_resting{model="m",replica="a"}': "0x40",
    'r2_model_unavailable{model="m",replica="a"}': "0 0 0 1 1 0 0x34",
    'r2_controller_absent{replica="a"}': "0x10 1 0x30",
    'ray_vllm_num_requests_waiting{model_name="m",ReplicaId="a"}': "9x40",
    'ray_vllm_num_requests_waiting{model_name="m",ReplicaId="b"}': "0x40",
    'ray_vllm_num_preemptions_total{model_name="m",ReplicaId="a"}': "0+1x40",
    'r2_fallbacks_total{stage="plan"}': "0+5x40",
    "r2_plan_depth_count": "0+60x40",
    "r2_router_replicas_silent": "0x40",
    'r2_cost_usd_total{model="m"}': "0+0.05x40",
    'ray_serve_autoscaling_target_replicas{application="r2",deployment="Router"}': "2x40",
    'ray_serve_deployment_replica_healthy{application="r2",deployment="Router",replica="a"}': "1x40",
    'ray_serve_deployment_replica_healthy{application="r2",deployment="Router",replica="b"}': "1x40",
    'ray_serve_deployment_replica_starts_total{application="r2",deployment="Router",replica="a"}': "1x40",
    'ray_serve_autoscaling_target_replicas{application="m-small",deployment="Model"}': " ".join(
        ["0 0 4 4 4"] * 8
    ),
    **{
        started("m-small", "Model", f"{start}-{i}"): f"_x{start} 1x2"
        for start in range(2, 40, 5)
        for i in range(4)
    },
    'ray_node_mem_used{instance="n"}': "50x40",
    'ray_node_mem_total{instance="n"}': "100x40",
    'ray_node_disk_utilization_percentage{instance="n"}': "50x40",
}
"""A cluster that is well, one sample a minute; 3 USD an hour. One of its models goes to zero and back to four
every five minutes."""
FAULTS = {
    "R2Down": {'up{job="r2"}': "1x5 0x34"},
    "R2Errors": {f'r2_requests_total{{{CHAT},status="503"}}': "0+10x40"},
    "R2QueueFillsUp": {'r2_requests_queued{replica="b"}': "200x40"},
    "R2Slow": {f'r2_request_seconds_bucket{{{CHAT},le="60"}}': "0+10x40"},
    "R2ModelRests": {'r2_model_resting{model="m",replica="a"}': "1x40"},
    "R2ModelUnavailable": {'r2_model_unavailable{model="m",replica="a"}': "1x40"},
    "R2ControllerAbsent": {'r2_controller_absent{replica="a"}': "1x40"},
    "R2EngineFull": {'ray_vllm_num_requests_waiting{model_name="m",ReplicaId="b"}': "1x40"},
    "R2EnginePreempts": {'ray_vllm_num_preemptions_total{model_name="m",ReplicaId="a"}': "0+60x40"},
    "R2PlansReplaced": {'r2_fallbacks_total{stage="plan"}': "0+20x40"},
    "R2MetricsIncomplete": {"r2_router_replicas_silent": "1x40"},
    "R2Spending": {'r2_cost_usd_total{model="m"}': "0+0.2x40"},
    "R2ReplicasMissing": {
        'ray_serve_autoscaling_target_replicas{application="r2",deployment="Router"}': "3x40"
    },
    "R2ReplicasRestart": {
        started("r2", "Router", str(number)): f"_x{2 * number} 1x2" for number in range(1, 18)
    },
    "R2NodeMemory": {'ray_node_mem_used{instance="n"}': "95x40"},
    "R2NodeDisk": {'ray_node_disk_utilization_percentage{instance="n"}': "95x40"},
}
"""What each alert is for."""


def test_every_alert_has_a_test_case() -> None:
    assert alerts(config(), 5).keys() == FAULTS.keys()


@needs_promtool
def test_each_alert_fires_on_its_fault_and_none_on_a_healthy_cluster(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(alert_rules(config(), max_usd_per_hour=5)))

    def case(series: dict[str, str], firing: set[str]) -> dict[str, Any]:
        """After 38 minutes exactly these fire."""
        expr = 'group by (alertname) (ALERTS{alertstate="firing"})'
        samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        return {
            "interval": "1m",
            "input_series": inputs,
            "promql_expr_test": [{"expr": expr, "eval_time": "38m", "exp_samples": samples}],
        }

    none_there = {name: values for name, values in FINE.items() if not name.startswith(HEALTHY)}
    nothing_wanted = {name: values for name, values in FINE.items() if not name.startswith(WANTED)}
    fixed_missing = {n: v for n, v in nothing_wanted.items() if 'application="m-router-base"' not in n}
    cases = [
        case(FINE, set()),
        case(none_there, {"R2ReplicasMissing"}),
        case(nothing_wanted, {"R2ReplicasRestart"}),
        case(fixed_missing, {"R2ReplicasMissing", "R2ReplicasRestart"}),
        *(case(FINE | fault, {name}) for name, fault in FAULTS.items()),
    ]
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(tmp_path / "test.yml"))
