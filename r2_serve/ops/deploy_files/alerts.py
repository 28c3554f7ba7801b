"""Alert rules, with bounds from the config that they watch. Each says what is wrong and what to look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from r2_serve.cluster.metric_pages import SILENT
from r2_serve.http.metrics import SECONDS
from r2_serve.ops.deploy_files.panels import CHAT, starts
from r2_serve.serve_config import ServeConfig

GROUP = "r2"
WANTED = "max by (application, deployment) (ray_serve_autoscaling_target_replicas)"
WANTED_MORE = "max by (application, deployment) (increase(ray_serve_autoscaling_target_replicas[15m]))"
"""How often one more was wanted: taken for a counter, what a gauge gives is the sum of its rises."""
SLOW_SHARE = 0.8
"""Of the deadline."""


@dataclass(frozen=True)
class Alert:
    name: str
    expr: str
    lasts: str
    """How long it must hold before anyone is told."""
    severity: Literal["warning", "critical"]
    summary: str
    look_at: str


def alerts(config: ServeConfig, max_usd_per_hour: float | None = None) -> list[Alert]:
    """For this config; the one on spend only where a bound is given, as nobody else knows it."""
    max_queued, deadline_s = config.router.server.max_queued, config.routing.limits.deadline_s
    rules = [*_fixed(), *_bounded(max_queued, deadline_s)]
    if max_usd_per_hour is not None:
        expr = f"sum(rate(r2_cost_usd_total[15m])) * 3600 > {max_usd_per_hour:g}"
        rules.append(
            Alert(
                "R2Spending",
                expr,
                "15m",
                "critical",
                f"More than {max_usd_per_hour:g} USD per hour",
                "Spend by model and by key; limits.max_cost_usd and budgets of keys bound it.",
            )
        )
    return rules


def rule_groups(rules: list[Alert]) -> dict[str, Any]:
    """As a rule file of Prometheus, and the `spec` of a PrometheusRule."""
    return {"groups": [{"name": GROUP, "rules": [_rule(rule) for rule in rules]}]}


def _rule(rule: Alert) -> dict[str, Any]:
    annotations = {"summary": rule.summary, "description": f"{rule.look_at} See docs/operations.md."}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.lasts,
        "labels": {"severity": rule.severity},
        "annotations": annotations,
    }


def _bounded(max_queued: int, deadline_s: float) -> list[Alert]:
    slow_s = SLOW_SHARE * min(deadline_s, SECONDS[-1])
    return [
        Alert(
            "R2QueueFillsUp",
            f"sum(r2_requests_queued) / count(r2_requests_queued) > {max_queued / 2:g}",
            "2m",
            "warning",
            "Half of the router's queue is full",
            f"Beyond {max_queued} waiting per replica requests get 429. Are replicas of the router or of a model missing?",
        ),
        Alert(
            "R2Slow",
            f"histogram_quantile(0.95, sum by (le) (rate(r2_request_seconds_bucket{{{CHAT}}}[5m]))) > {slow_s:g}",
            "10m",
            "warning",
            f"The slowest twentieth of requests come near the deadline of {deadline_s:g} s",
            "Call latency by model, and requests queued at callers.",
        ),
    ]


def _fixed() -> list[Alert]:
    return [
        Alert(
            "R2Down",
            'up{job="r2"} == 0',
            "2m",
            "critical",
            "The endpoint does not answer",
            "serve status; is its proxy alive?",
        ),
        Alert(
            "R2Errors",
            f'sum(rate(r2_requests_total{{{CHAT},status=~"5.."}}[5m])) / sum(rate(r2_requests_total{{{CHAT}}}[5m])) > 0.05',
            "5m",
            "critical",
            "More than 5 % of requests fail",
            "Calls by outcome and resting models; the log has each request's error with its id.",
        ),
        Alert(
            "R2ModelRests",
            "max by (model) (r2_model_resting) == 1",
            "5m",
            "warning",
            "{{ $labels.model }} keeps failing and is passed over",
            "Its provider, or its application's replicas. Queries go to its fallbacks meanwhile.",
        ),
        Alert(
            "R2PlansReplaced",
            "sum by (stage) (rate(r2_fallbacks_total[15m])) / scalar(sum(rate(r2_plan_depth_count[15m]))) > 0.2",
            "15m",
            "warning",
            "A fifth of {{ $labels.stage }}s are replaced by the fallback",
            "The decomposer's or allocator's model, and its adapter: plan_fallback in the traces says why.",
        ),
        Alert(
            "R2MetricsIncomplete",
            f"max({SILENT}) > 0",
            "5m",
            "warning",
            "A router replica does not give its metrics",
            "Its node, and the network between nodes: sums over replicas are too low meanwhile.",
        ),
        Alert(
            "R2ReplicasMissing",
            f"{WANTED} > (sum by (application, deployment) (ray_serve_deployment_replica_healthy) or {WANTED} * 0)",
            "15m",
            "warning",
            "{{ $labels.application }} has fewer replicas than the autoscaler wants",
            "serve status. No GPU to be had (pending nodes), or the replica does not start.",
        ),
        Alert(
            "R2ReplicasRestart",
            f"{starts('15m')} > 3 + ({WANTED_MORE} or 0 * {starts('15m')})",
            "5m",
            "warning",
            "Replicas of {{ $labels.application }} start over and over",
            "serve status and the replica's log: out of memory, or a prompt that kills it.",
        ),
        Alert(
            "R2NodeMemory",
            "max by (instance) (ray_node_mem_used) / max by (instance) (ray_node_mem_total) > 0.92",
            "5m",
            "warning",
            "{{ $labels.instance }} is nearly out of memory",
            "At 95 % Ray kills a worker of that node.",
        ),
        Alert(
            "R2NodeDisk",
            "max by (instance) (ray_node_disk_utilization_percentage) > 90",
            "10m",
            "warning",
            "A disk of {{ $labels.instance }} is nearly full",
            "Logs under /tmp/ray, models, traces.",
        ),
    ]
