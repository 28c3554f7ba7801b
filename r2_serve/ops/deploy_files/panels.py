"""What the dashboard shows, top to bottom: rows of panels, each with its queries. `dashboard` makes Grafana's JSON of it.

`r2_*` are the router's own metrics (`r2_serve.http.metrics`), `ray_*` those of Ray and Ray Serve. A test holds every name here
and in `alerts` to those that exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CHAT = 'route="/v1/chat/completions"'
STARTED = "ray_serve_deployment_replica_starts_total"
"""1 for as long as a replica lives, with the replica's own id: Ray counts in the replica itself."""
WINDOW = "$__rate_interval"
"""Grafana's own: at least four scrapes."""


@dataclass(frozen=True)
class Panel:
    """One plot: `queries` by legend; `{{label}}` in a legend stands for that label's value."""

    title: str
    unit: str
    """Of Grafana: `s`, `reqps`, `currencyUSD`, `short`, `percentunit`, `bytes`."""
    queries: dict[str, str]
    says: str = ""
    """For the reader of the plot."""
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel] = field(default_factory=list)


def quantiles(metric: str, by: str = "", where: str = "") -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    buckets = f"sum by ({labels}) (rate({metric}_bucket{{{where}}}[{WINDOW}]))"
    return {f"p{round(q * 100)}{legend}": f"histogram_quantile({q}, {buckets})" for q in (0.5, 0.95, 0.99)}


def starts(window: str) -> str:
    """Replicas of each deployment that were not there `window` ago."""
    return f"count by (application, deployment) (last_over_time({STARTED}[{window}]) unless {STARTED} offset {window})"


def mean(metric: str) -> str:
    return f"sum(rate({metric}_sum[{WINDOW}])) / sum(rate({metric}_count[{WINDOW}]))"


ROWS = [
    Row(
        "Requests",
        [
            Panel(
                "Requests by status",
                "reqps",
                {"{{status}}": f"sum by (status) (rate(r2_requests_total{{{CHAT}}}[{WINDOW}]))"},
                is_stacked=True,
            ),
            Panel(
                "Latency",
                "s",
                quantiles("r2_request_seconds", where=CHAT),
                "From the first byte in to the last byte out, streams included.",
            ),
            Panel(
                "At work and waiting",
                "short",
                {"at work": "sum(r2_requests_running)", "waiting": "sum(r2_requests_queued)"},
                "Of all router replicas. Beyond server.max_queued of a replica requests get 429.",
            ),
        ],
    ),
    Row(
        "Money",
        [
            Panel(
                "Spend per hour by model",
                "currencyUSD",
                {"{{model}}": f"sum by (model) (rate(r2_cost_usd_total[{WINDOW}])) * 3600"},
                is_stacked=True,
            ),
            Panel(
                "Spend per hour by stage",
                "currencyUSD",
                {"{{stage}}": f"sum by (stage) (rate(r2_cost_usd_total[{WINDOW}])) * 3600"},
                is_stacked=True,
            ),
            Panel(
                "Cost of an answered request",
                "currencyUSD",
                {
                    "mean": f'sum(rate(r2_cost_usd_total[{WINDOW}])) / sum(rate(r2_requests_total{{{CHAT},status="200"}}[{WINDOW}]))'
                },
                "Spend on failed requests is in it: they cost as well.",
            ),
            Panel(
                "Tokens",
                "short",
                {"{{model}} {{direction}}": f"sum by (model, direction) (rate(r2_tokens_total[{WINDOW}]))"},
                "Per second.",
            ),
            Panel(
                "Spend of client keys",
                "currencyUSD",
                {"{{key}}": "max by (key) (r2_key_spent_usd)"},
                "In the key's current budget period. Router replicas that share server.spend_file say the same, hence the largest.",
                kind="bargauge",
            ),
        ],
    ),
    Row(
        "Plans",
        [
            Panel(
                "Overhead of routing",
                "s",
                quantiles("r2_overhead_seconds"),
                "Time of a query in which none of its subtasks ran.",
            ),
            Panel(
                "Shape of plans",
                "short",
                {"depth": mean("r2_plan_depth"), "width": mean("r2_plan_width")},
                "Means.",
            ),
            Panel(
                "Plans and allocations replaced",
                "percentunit",
                {
                    "{{stage}}": f"sum by (stage) (rate(r2_fallbacks_total[{WINDOW}])) / scalar(sum(rate(r2_plan_depth_count[{WINDOW}])))"
                },
                "Share of plans whose decomposer or allocator gave nothing usable: they went to the fallback model.",
            ),
        ],
    ),
    Row(
        "Models",
        [
            Panel(
                "Calls by outcome",
                "reqps",
                {"{{outcome}}": f"sum by (outcome) (rate(r2_calls_total[{WINDOW}]))"},
                is_stacked=True,
            ),
            Panel(
                "Calls by model",
                "reqps",
                {"{{model}}": f"sum by (model) (rate(r2_calls_total[{WINDOW}]))"},
                is_stacked=True,
            ),
            Panel(
                "Call latency, 95th percentile",
                "s",
                {
                    "{{model}}": f"histogram_quantile(0.95, sum by (le, model) (rate(r2_call_seconds_bucket[{WINDOW}])))"
                },
            ),
            Panel(
                "Resting after failures",
                "short",
                {"{{model}}": "max by (model) (r2_model_resting)"},
                "1 while calls pass the model over.",
            ),
        ],
    ),
    Row(
        "Replicas (Ray Serve)",
        [
            Panel(
                "Replicas",
                "short",
                {
                    "{{application}} {{deployment}}": "sum by (application, deployment) (ray_serve_deployment_replica_healthy)"
                },
                is_stacked=True,
            ),
            Panel(
                "Replicas wanted",
                "short",
                {
                    "{{application}} {{deployment}}": "max by (application, deployment) (ray_serve_autoscaling_target_replicas)"
                },
                "By the autoscaler. Wanted for long and not there: no node, no GPU, or the start fails.",
            ),
            Panel(
                "Ongoing requests",
                "short",
                {
                    "{{application}} {{deployment}}": "sum by (application, deployment) (ray_serve_replica_processing_queries)"
                },
            ),
            Panel(
                "Queued at callers",
                "short",
                {
                    "{{application}} {{deployment}}": "sum by (application, deployment) (ray_serve_deployment_queued_queries)"
                },
            ),
            Panel(
                "Replica starts",
                "short",
                {"{{application}} {{deployment}}": starts("10m")},
                "In the last ten minutes, by a replica's first scrape.",
            ),
            Panel(
                "Proxy latency",
                "ms",
                quantiles("ray_serve_http_request_latency_ms"),
                "As Serve's HTTP proxies see it.",
            ),
        ],
    ),
    Row(
        "Nodes",
        [
            Panel(
                "Nodes",
                "short",
                {
                    "{{node_type}}": "max by (node_type) (ray_cluster_active_nodes)",
                    "{{node_type}} pending": "max by (node_type) (ray_cluster_pending_nodes)",
                },
                "Where Ray's autoscaler runs.",
            ),
            Panel(
                "GPU utilization",
                "percent",
                {"{{instance}} {{GpuIndex}}": "avg by (instance, GpuIndex) (ray_node_gpus_utilization)"},
            ),
            Panel(
                "GPU memory",
                "percentunit",
                {
                    "{{instance}} {{GpuIndex}}": "sum by (instance, GpuIndex) (ray_node_gram_used)"
                    " / sum by (instance, GpuIndex) (ray_node_gram_used + ray_node_gram_available)"
                },
            ),
            Panel(
                "CPU utilization", "percent", {"{{instance}}": "avg by (instance) (ray_node_cpu_utilization)"}
            ),
            Panel(
                "Memory",
                "percentunit",
                {
                    "{{instance}}": "max by (instance) (ray_node_mem_used) / max by (instance) (ray_node_mem_total)"
                },
            ),
            Panel(
                "Disk",
                "percent",
                {"{{instance}}": "max by (instance) (ray_node_disk_utilization_percentage)"},
            ),
        ],
    ),
]
