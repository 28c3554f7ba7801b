"""Pictures of a load run: the timeline, and the distribution of latencies."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2_serve.lab.load.records import LoadRecord, ReplicaCount, TimelineSample
from r2_serve.lab.load.summary import Distribution
from r2_serve.lab.reports.svg import STYLE, svg
from r2_serve.lab.workload import Slo

BLUE, GREEN, RED, GREY = "#3a86c8", "#3f9b6b", "#d1495b", "#8a94a0"
_NUM_WINDOWS = 120
_NUM_POINTS = 400
"""Points of a curve: more would only make the page larger."""
WIDTH_INCHES, PANEL_INCHES = 11, 1.45
Panel = Callable[[Axes], None]


@dataclass(frozen=True)
class Window:
    """A stretch of the run."""

    start_s: float
    sent_per_s: float
    ok_per_s: float
    failed_per_s: float
    latency_s: Distribution | None
    """Latency of the requests that were to be sent in it."""


def windows(records: Iterable[LoadRecord], end_s: float) -> list[Window]:
    """The run in at most 120 stretches of at least a second."""
    width = max(1.0, math.ceil(2 * end_s / _NUM_WINDOWS) / 2)
    sent, ok, failed = (defaultdict[int, int](int) for _ in range(3))
    latencies: dict[int, array[float]] = defaultdict(lambda: array("d"))
    for record in records:
        first, last = int(record.intended_start_s / width), int(record.end_s / width)
        sent[first] += 1
        if record.outcome == "ok":
            ok[last] += 1
            latencies[first].append(record.latency_s)
        elif record.outcome == "failed":
            failed[last] += 1
    return [
        Window(i * width, sent[i] / width, ok[i] / width, failed[i] / width, Distribution.of(latencies[i]))
        for i in range(int(end_s / width) + 1)
    ]


def stacked(panels: Sequence[Panel], label: str, x_label: str, *, end_s: float | None = None) -> str:
    """Panels one above the other over the same time, each with its legend, as SVG."""
    with mpl.rc_context(STYLE):
        size = (WIDTH_INCHES, PANEL_INCHES * len(panels) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, draw in zip(column, panels, strict=True):
            draw(axes)
            axes.set_xlim(0, end_s)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.15)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1.2)
        column[-1].set_xlabel(x_label)
        return svg(figure, label)


def timeline_plot(records: Iterable[LoadRecord], timeline: Sequence[TimelineSample], slo: Slo) -> str:
    """Arrivals, queue, replicas of each deployment, latency and spend, one above the other over one time."""
    last_end_s = max((record.end_s for record in records), default=1.0)
    end_s = max(last_end_s, *(sample.t_s for sample in timeline), 1.0)
    timeline = timeline[:: 1 + len(timeline) // (5 * _NUM_POINTS)]
    shown = windows(records, end_s)
    panels: list[Panel] = [
        partial(_rates, shown=shown),
        partial(_queue, timeline=timeline),
        *(partial(_replicas, timeline=timeline, name=name) for name in _scaled(timeline)),
        *([partial(_engines, timeline=timeline)] if any(sample.engines for sample in timeline) else []),
        partial(_latency, shown=shown, slo=slo),
        partial(_spend, timeline=timeline),
    ]
    label = "Arrivals, queue, replicas, latency and spend over the run"
    return stacked(panels, label, "seconds from the start of the run", end_s=end_s)


def replica_axes(axes: Axes, name: str) -> None:
    """Prepares a panel with the replicas of one deployment."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("replicas")
    axes.set_title(name, loc="left", fontsize=9, pad=2)


def counts_of(timeline: Sequence[TimelineSample], name: str) -> tuple[list[float], list[ReplicaCount]]:
    """Times and replica counts of one deployment."""
    seen = [sample for sample in timeline if name in sample.deployments]
    return [sample.t_s for sample in seen], [sample.deployments[name] for sample in seen]


def _scaled(timeline: Sequence[TimelineSample]) -> list[str]:
    """Deployments whose replicas changed over the run; a picture of the others would show a line."""
    counts: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
    for sample in timeline:
        for name, count in sample.deployments.items():
            counts[name].add((count.running, count.starting, count.target))
    return sorted(name for name, seen in counts.items() if len(seen) > 1)


def latency_plot(records: Iterable[LoadRecord], slo: Slo) -> str:
    """The share of requests answered within a time; failed requests keep it below 100 %."""
    latencies, ttfts, num_ended = array("d"), array("d"), 0
    for record in records:
        num_ended += record.outcome != "unfinished"
        if record.outcome == "ok":
            latencies.append(record.latency_s)
            if record.ttft_s is not None:
                ttfts.append(record.ttft_s)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.2), layout="constrained")
        axes = figure.subplots()
        _distribution(axes, latencies, num_ended, "whole answer", BLUE)
        _distribution(axes, ttfts, num_ended, "first token", GREEN)
        for limit_s, color in ((slo.latency_s, BLUE), (slo.ttft_s, GREEN)):
            if limit_s is not None:
                axes.axvline(limit_s, color=color, ls="--", lw=1)
        axes.set(xlabel="seconds from the intended start (dashed: objective)", ylabel="% of requests")
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.15)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", frameon=False, handlelength=1.2)
        return svg(figure, "Share of requests answered within a time")


def _distribution(axes: Axes, times_s: Sequence[float], num_ended: int, label: str, color: str) -> None:
    if not times_s:
        return
    ordered = sorted(times_s)
    ranks = sorted({round(i * (len(ordered) - 1) / _NUM_POINTS) for i in range(_NUM_POINTS + 1)})
    shares = [0.0, *(100 * (rank + 1) / num_ended for rank in ranks)]
    axes.step([0.0, *(ordered[rank] for rank in ranks)], shares, where="post", color=color, label=label)


def _rates(axes: Axes, shown: Sequence[Window]) -> None:
    starts, failed = [window.start_s for window in shown], [window.failed_per_s for window in shown]
    step = partial(axes.step, starts, where="post", lw=1.2)
    step([window.sent_per_s for window in shown], color=BLUE, label="arrived")
    step([window.ok_per_s for window in shown], color=GREEN, label="answered")
    if any(failed):
        step(failed, color=RED, label="failed")
    axes.set_ylabel("requests/s")


def _queue(axes: Axes, timeline: Sequence[TimelineSample]) -> None:
    times = [sample.t_s for sample in timeline]
    axes.plot(times, [sample.num_open for sample in timeline], color=BLUE, lw=1.2, label="under way")
    queued = [(sample.t_s, sample.queue.queued) for sample in timeline if sample.queue is not None]
    if any(count for _, count in queued):
        axes.plot(*zip(*queued, strict=True), color=RED, lw=1.2, label="queued in router")
    axes.set_ylabel("requests")


def _replicas(axes: Axes, timeline: Sequence[TimelineSample], name: str) -> None:
    times, counts = counts_of(timeline, name)
    running, present = [c.running for c in counts], [c.running + c.starting for c in counts]
    axes.fill_between(times, running, step="post", color=GREEN, alpha=0.55, lw=0, label="running")
    axes.fill_between(times, running, present, step="post", color=RED, alpha=0.45, lw=0, label="starting")
    axes.step(times, [c.target for c in counts], where="post", color=GREY, lw=1, ls="--", label="target")
    replica_axes(axes, name)


def _engines(axes: Axes, timeline: Sequence[TimelineSample]) -> None:
    times = [sample.t_s for sample in timeline]
    states = [list(sample.engines.values()) for sample in timeline]
    axes.plot(times, [sum(s.running for s in own) for own in states], color=GREEN, lw=1.2, label="at work")
    axes.plot(times, [sum(s.waiting for s in own) for own in states], color=RED, lw=1.2, label="waiting")
    axes.set_ylabel("in engines")


def _latency(axes: Axes, shown: Sequence[Window], slo: Slo) -> None:
    seen = [(window.start_s, window.latency_s) for window in shown if window.latency_s is not None]
    plot = partial(axes.plot, [t for t, _ in seen], ms=3, lw=0.8, marker=".")
    plot([latency.p50 for _, latency in seen], color=BLUE, label="p50")
    plot([latency.p95 for _, latency in seen], color=RED, label="p95")
    if slo.latency_s is not None:
        axes.axhline(slo.latency_s, color=GREY, ls="--", lw=1, label="objective")
    axes.set_ylabel("latency, s")


def _spend(axes: Axes, timeline: Sequence[TimelineSample]) -> None:
    times = [sample.t_s for sample in timeline]
    axes.plot(times, [float(sample.spent_usd) for sample in timeline], color=BLUE, lw=1.2)
    axes.set_ylabel("spent, USD")
