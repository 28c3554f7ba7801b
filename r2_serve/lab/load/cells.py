"""The figures of a run as text, for the terminal and the page alike."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from r2_serve.lab.load.records import LoadRecord
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.reports.export import ReportTable, flat
from r2_serve.lab.reports.terminal import usd

LATENCY_COLUMNS = ("seconds", "mean", "p50", "p90", "p95", "p99", "max")
DEPLOYMENT_COLUMNS = ("deployment", "replica-s", "of it starting", "most at once", "GPU-s")
START_PARTS = ("node_s", "image_s", "process_s", "weights_s", "engine_s", "first_token_s", "on_node_s")
START_COLUMNS = (
    "cold starts of", "node", "image", "process", "weights", "engine", "first token", "on a node, p50 / p95"
)  # fmt: skip
SLOWEST_COLUMNS = (
    "request", "to be sent at, s", "late, ms", "first token, s", "latency, s", "subtasks", "outcome"
)  # fmt: skip
NUM_SLOWEST = 10


def seconds(value: float | None) -> str:
    """A time with three significant digits and no exponent."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def verdict(summary: LoadSummary) -> str:
    """The run in one sentence."""
    if summary.slo_attainment is None:
        return "No request ended."
    slo = summary.info.slo
    named = ((slo.ttft_s, "the first token"), (slo.latency_s, "the end"))
    limits = [f"{seconds(limit)} s to {what}" for limit, what in named if limit]
    kind = ("correct, " if summary.num_graded else "") + (
        f"within {' and '.join(limits)}" if limits else "answered"
    )
    return (
        f"{100 * summary.slo_attainment:.1f} % of requests {kind}; "
        f"goodput {summary.goodput_per_s:.2f}/s, cost {usd(summary.cost_usd)}."
    )


def figure_rows(summary: LoadSummary) -> Iterator[tuple[str, str]]:
    """Names and values of the single figures."""
    errors = "".join(f"; {count} x {kind}" for kind, count in summary.errors.items())
    per_request = usd(summary.cost_usd / max(summary.num_ok, 1))
    yield "requests sent", f"{summary.num_sent} in {seconds(summary.wall_s)} s ({summary.sent_per_s:.2f}/s)"
    yield "answered", f"{summary.num_ok} ({summary.ok_per_s:.2f}/s)"
    yield "failed", f"{summary.num_failed}{errors}"
    if summary.num_unfinished:
        yield "unfinished", str(summary.num_unfinished)
    yield "good (objective met)", f"{summary.num_good} ({summary.goodput_per_s:.2f}/s)"
    yield "cost of model calls", f"{usd(summary.cost_usd)}, {per_request} a request"
    yield "tokens", f"{summary.prompt_tokens:,} in, {summary.completion_tokens:,} out"
    if summary.num_graded:
        yield "correct", f"{summary.num_correct} of {summary.num_graded} graded"
    if summary.deployments:
        yield "replica-seconds", f"{summary.replica_s:.0f}"
    if summary.gpu_s:
        price = summary.info.gpu_usd_per_hour
        cost = f", ${summary.gpu_usd:.4f} at ${price:g} an hour" if price else ""
        yield "GPU-seconds", f"{summary.gpu_s:.0f}{cost}"
    if summary.node_s is not None:
        limit = summary.info.node_idle_timeout_s
        idle = "" if limit is None else f", of which a node is idle for {limit:g} s at most"
        yield "node-seconds", f"{summary.node_s:.0f}{idle}"


def latency_rows(summary: LoadSummary) -> Iterator[tuple[str, ...]]:
    """Rows of `LATENCY_COLUMNS`."""
    named = (
        ("end to end", summary.latency_s),
        ("first token", summary.ttft_s),
        ("generator late", summary.lateness_s),
    )
    for name, times in named:
        if times is not None:
            values = (times.mean, times.p50, times.p90, times.p95, times.p99, times.max)
            yield (name, *map(seconds, values))


def deployment_rows(summary: LoadSummary) -> Iterator[tuple[str, ...]]:
    """Rows of `DEPLOYMENT_COLUMNS`."""
    for name, use in summary.deployments.items():
        yield name, f"{use.replica_s:.1f}", f"{use.starting_s:.1f}", str(use.max_replicas), f"{use.gpu_s:.1f}"


def start_rows(summary: LoadSummary) -> Iterator[tuple[str, ...]]:
    """Rows of `START_COLUMNS`: medians of the parts in seconds."""
    for app, parts in summary.cold_starts.items():
        known = [parts.get(part) for part in START_PARTS]
        medians = (seconds(None if spread is None else spread.p50) for spread in known[:-1])
        whole = known[-1]
        yield app, *medians, "-" if whole is None else f"{seconds(whole.p50)} / {seconds(whole.p95)}"


def slowest_rows(records: Iterable[LoadRecord]) -> Iterator[tuple[str, ...]]:
    """Rows of `SLOWEST_COLUMNS`."""
    ended = (record for record in records if record.outcome != "unfinished")
    for record in heapq.nlargest(NUM_SLOWEST, ended, key=lambda record: record.latency_s):
        yield (
            str(record.index),
            seconds(record.intended_start_s),
            f"{1000 * record.lateness_s:.0f}",
            seconds(record.ttft_s),
            seconds(record.latency_s),
            "-" if record.num_subtasks is None else str(record.num_subtasks),
            record.error or "ok",
        )


def tables(summary: LoadSummary, records: Iterable[LoadRecord]) -> Iterator[ReportTable]:
    """The tables of the page. `records` are read once."""
    title = f"{summary.info.workload}, seed {summary.info.seed}"
    yield ReportTable(
        "figures", f"{title}.", ("figure", "value"), list(figure_rows(summary)), [flat(summary)]
    )
    latencies = list(latency_rows(summary))
    yield ReportTable("latency", f"{title}. Seconds from the intended start.", LATENCY_COLUMNS, latencies)
    if summary.deployments:
        records_of = [{"deployment": name, **dict(use)} for name, use in summary.deployments.items()]
        rows = list(deployment_rows(summary))
        yield ReportTable("deployments", f"{title}. Replicas.", DEPLOYMENT_COLUMNS, rows, records_of)
    slowest = list(slowest_rows(records))
    yield ReportTable("slowest", f"{title}. The slowest requests.", SLOWEST_COLUMNS, slowest)
