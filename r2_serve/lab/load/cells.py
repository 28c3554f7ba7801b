"""The figures of a run as text, for the terminal and the page alike."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from r2_serve.lab.load.records import RequestRecord
from r2_serve.lab.load.summary import Distribution, LoadSummary
from r2_serve.lab.reports.terminal import usd

LATENCY_COLUMNS = ("seconds", "mean", "p50", "p90", "p95", "p99", "max")
DEPLOYMENT_COLUMNS = ("deployment", "replica-s", "of it starting", "most at once", "GPU-s")
SLOWEST_COLUMNS = (
    "request",
    "to be sent at, s",
    "late, ms",
    "first token, s",
    "latency, s",
    "subtasks",
    "outcome",
)
NUM_SLOWEST = 10


def seconds(value: float | None) -> str:
    """Three significant digits and no exponent."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def verdict(summary: LoadSummary) -> str:
    """The run in a sentence."""
    if summary.slo_attainment is None:
        return "No request ended."
    slo = summary.info.slo
    limits = [
        f"{seconds(limit)} s to {what}"
        for limit, what in ((slo.ttft_s, "the first token"), (slo.latency_s, "the end"))
        if limit
    ]
    kind = ("correct, " if summary.num_graded else "") + (
        f"within {' and '.join(limits)}" if limits else "answered"
    )
    return f"{100 * summary.slo_attainment:.1f} % of requests {kind}; goodput {summary.goodput_per_s:.2f}/s, cost {usd(summary.cost_usd)}."


def figure_rows(summary: LoadSummary) -> list[tuple[str, str]]:
    """What and how much."""
    answered = max(summary.num_ok, 1)
    rows = [
        ("requests sent", f"{summary.num_sent} in {seconds(summary.wall_s)} s ({summary.sent_per_s:.2f}/s)"),
        ("answered", f"{summary.num_ok} ({summary.ok_per_s:.2f}/s)"),
        (
            "failed",
            f"{summary.num_failed}"
            + "".join(f"; {count} x {kind}" for kind, count in summary.errors.items()),
        ),
        ("good (objective met)", f"{summary.num_good} ({summary.goodput_per_s:.2f}/s)"),
        ("cost of model calls", f"{usd(summary.cost_usd)}, {usd(summary.cost_usd / answered)} a request"),
        ("tokens", f"{summary.prompt_tokens:,} in, {summary.completion_tokens:,} out"),
    ]
    if summary.num_unfinished:
        rows.insert(3, ("unfinished", str(summary.num_unfinished)))
    if summary.num_graded:
        rows.append(("correct", f"{summary.num_correct} of {summary.num_graded} graded"))
    if summary.deployments:
        rows.append(("replica-seconds", f"{summary.replica_s:.0f}"))
    if summary.gpu_s:
        price = (
            f", ${summary.gpu_usd:.4f} at ${summary.info.gpu_usd_per_hour:g} an hour"
            if summary.info.gpu_usd_per_hour
            else ""
        )
        rows.append(("GPU-seconds", f"{summary.gpu_s:.0f}{price}"))
    return rows


def latency_rows(summary: LoadSummary) -> list[tuple[str, ...]]:
    """As `LATENCY_COLUMNS`."""
    named = (
        ("end to end", summary.latency_s),
        ("first token", summary.ttft_s),
        ("generator late", summary.lateness_s),
    )
    return [(name, *_distribution(times)) for name, times in named if times is not None]


def deployment_rows(summary: LoadSummary) -> list[tuple[str, ...]]:
    """As `DEPLOYMENT_COLUMNS`."""
    return [
        (name, f"{use.replica_s:.1f}", f"{use.starting_s:.1f}", str(use.max_replicas), f"{use.gpu_s:.1f}")
        for name, use in summary.deployments.items()
    ]


def slowest_rows(records: Iterable[RequestRecord]) -> list[tuple[str, ...]]:
    """As `SLOWEST_COLUMNS`."""
    ended = (record for record in records if record.outcome != "unfinished")
    return [
        (
            str(record.index), seconds(record.intended_start_s), f"{1000 * record.lateness_s:.0f}", seconds(record.ttft_s),
            seconds(record.latency_s), "-" if record.num_subtasks is None else str(record.num_subtasks), record.error or "ok",
        )
        for record in heapq.nlargest(NUM_SLOWEST, ended, key=lambda record: record.latency_s)
    ]  # fmt: skip


def _distribution(times: Distribution) -> tuple[str, ...]:
    return tuple(
        seconds(value) for value in (times.mean, times.p50, times.p90, times.p95, times.p99, times.max)
    )
