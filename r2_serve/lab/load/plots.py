"""Pictures of a load run: the timeline, and how latencies are distributed."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2_serve.lab.load.records import RequestRecord, TimelineSample
from r2_serve.lab.load.summary import Distribution
from r2_serve.lab.reports.svg import STYLE, svg
from r2_serve.lab.workload import Slo

_SENT, _GOOD, _BAD, _SOFT = "#3a86c8", "#3f9b6b", "#d1495b", "#8a94a0"
_NUM_WINDOWS = 120
_NUM_POINTS = 400
"""Of a curve: more would only make the page larger."""
_ROW_INCHES = 1.45


@dataclass(frozen=True)
class Window:
    """A stretch of the run."""

    start_s: float
    sent_per_s: float
    ok_per_s: float
    failed_per_s: float
    latency_s: Distribution | None
    """Of the requests that were to be sent in it."""


def windows(records: Iterable[RequestRecord], end_s: float) -> list[Window]:
    """The run in at most 120 stretches of at least a second."""
    width = max(1.0, math.ceil(2 * end_s / _NUM_WINDOWS) / 2)
    sent, ok, failed = (defaultdict[int, int](int) for _ in range(3))
    latencies: dict[int, array[float]] = defaultdict(lambda: array("d"))
    for record in records:
        sent[int(record.intended_start_s / width)] += 1
        if record.outcome == "ok":
            ok[int(record.end_s / width)] += 1
            latencies[int(record.intended_start_s / width)].append(record.latency_s)
        elif record.outcome == "failed":
            failed[int(record.end_s / width)] += 1
    count = int(end_s / width) + 1
    return [
        Window(i * width, sent[i] / width, ok[i] / width, failed[i] / width, Distribution.of(latencies[i]))
        for i in range(count)
    ]


def timeline_plot(records: Iterable[RequestRecord], timeline: Sequence[TimelineSample], slo: Slo) -> str:
    """Arrivals, queue, replicas of each deployment, latency and spend, one above the other over one time."""
    end_s = max(
        max((record.end_s for record in records), default=1.0),
        max((sample.t_s for sample in timeline), default=1.0),
        1.0,
    )
    timeline = timeline[:: 1 + len(timeline) // (5 * _NUM_POINTS)]
    shown = windows(records, end_s)
    names = _scaled(timeline)
    rows: list[Callable[[Axes], None]] = [
        lambda axes: _rates(axes, shown),
        lambda axes: _queue(axes, timeline),
        *((lambda axes, name=name: _replicas(axes, timeline, name)) for name in names),
        lambda axes: _latency(axes, shown, slo),
        lambda axes: _spend(axes, timeline),
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, _ROW_INCHES * len(rows) + 0.4), layout="constrained")
        for axes, draw in zip(
            figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0], rows, strict=True
        ):
            draw(axes)
            axes.set_xlim(0, end_s)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.15)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1.2)
        axes.set_xlabel("seconds from the start of the run")
        return svg(figure, "Arrivals, queue, replicas, latency and spend over the run")


def _scaled(timeline: Sequence[TimelineSample]) -> list[str]:
    """Deployments whose replicas changed over the run; the others say nothing in a picture."""
    counts: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
    for sample in timeline:
        for name, count in sample.deployments.items():
            counts[name].add((count.running, count.starting, count.target))
    return sorted(name for name, seen in counts.items() if len(seen) > 1)


def latency_plot(records: Iterable[RequestRecord], slo: Slo) -> str:
    """The share of requests answered within a time; what failed is never reached."""
    latencies, ttfts, num_ended = array("d"), array("d"), 0
    for record in records:
        num_ended += record.outcome != "unfinished"
        if record.outcome == "ok":
            latencies.append(record.latency_s)
            if record.ttft_s is not None:
                ttfts.append(record.ttft_s)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        axes = figure.subplots()
        _distribution(axes, latencies, num_ended, "whole answer", _SENT)
        _distribution(axes, ttfts, num_ended, "first token", _GOOD)
        for limit_s, color in ((slo.latency_s, _SENT), (slo.ttft_s, _GOOD)):
            if limit_s is not None:
                axes.axvline(limit_s, color=color, ls="--", lw=1)
        axes.set_xlabel("seconds from the intended start (dashed: objective)")
        axes.set_ylabel("% of requests")
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
    starts = [window.start_s for window in shown]
    axes.step(
        starts, [window.sent_per_s for window in shown], where="post", color=_SENT, lw=1.2, label="arrived"
    )
    axes.step(
        starts, [window.ok_per_s for window in shown], where="post", color=_GOOD, lw=1.2, label="answered"
    )
    if any(window.failed_per_s for window in shown):
        axes.step(
            starts,
            [window.failed_per_s for window in shown],
            where="post",
            color=_BAD,
            lw=1.2,
            label="failed",
        )
    axes.set_ylabel("requests/s")


def _queue(axes: Axes, timeline: Sequence[TimelineSample]) -> None:
    axes.plot(
        [s.t_s for s in timeline], [s.num_open for s in timeline], color=_SENT, lw=1.2, label="under way"
    )
    seen = [(s.t_s, s.queue) for s in timeline if s.queue is not None]
    if any(queue.queued for _, queue in seen):
        axes.plot(
            [t for t, _ in seen],
            [queue.queued for _, queue in seen],
            color=_BAD,
            lw=1.2,
            label="queued in router",
        )
    axes.set_ylabel("requests")


def _replicas(axes: Axes, timeline: Sequence[TimelineSample], name: str) -> None:
    seen = [(s.t_s, s.deployments[name]) for s in timeline if name in s.deployments]
    times, counts = [t for t, _ in seen], [count for _, count in seen]
    running, present = [c.running for c in counts], [c.running + c.starting for c in counts]
    axes.fill_between(times, running, step="post", color=_GOOD, alpha=0.55, lw=0, label="running")
    axes.fill_between(times, running, present, step="post", color=_BAD, alpha=0.45, lw=0, label="starting")
    axes.step(times, [c.target for c in counts], where="post", color=_SOFT, lw=1, ls="--", label="target")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("replicas")
    axes.set_title(name, loc="left", fontsize=9, pad=2)


def _latency(axes: Axes, shown: Sequence[Window], slo: Slo) -> None:
    seen = [(window.start_s, window.latency_s) for window in shown if window.latency_s is not None]
    for field, color in (("p50", _SENT), ("p95", _BAD)):
        axes.plot(
            [t for t, _ in seen],
            [getattr(latency, field) for _, latency in seen],
            ".-",
            ms=3,
            lw=0.8,
            color=color,
            label=field,
        )
    if slo.latency_s is not None:
        axes.axhline(slo.latency_s, color=_SOFT, ls="--", lw=1, label="objective")
    axes.set_ylabel("latency, s")


def _spend(axes: Axes, timeline: Sequence[TimelineSample]) -> None:
    axes.plot([s.t_s for s in timeline], [float(s.spent_usd) for s in timeline], color=_SENT, lw=1.2)
    axes.set_ylabel("spent, USD")
