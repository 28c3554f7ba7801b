"""Pictures of an experiment: results against replica time of each variant, and its replicas over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2_serve.lab.experiment.results import CellFigures, Spread
from r2_serve.lab.load.plots import BLUE, GREEN, GREY, RED, WIDTH_INCHES, counts_of, replica_axes, stacked
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.reports.svg import STYLE, svg

_COLORS = (
    GREY, RED, BLUE, GREEN, "#c98a2b", "#7a5ca8", "#333333", "#4fb3b3", "#d684b4", "#8a6d3b"
)  # fmt: skip
_ALL_IN_TIME = 104.0
"""Upper limit of the axis of percentages: it has room for a point at 100 %, and no tick above."""


def trade_plot(cells: Sequence[CellFigures], variants: Sequence[str]) -> str:
    """Results against node-seconds, or replica-seconds where nodes were not counted.

    Each run is a point, and each variant's mean a larger one with its 95 % interval.
    """
    has_nodes = all(cell.node_s is not None for cell in cells)
    paid = {id(cell): (cell.node_s or 0.0) if has_nodes else cell.replica_s for cell in cells}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        for variant, color in _colored(variants):
            own = [cell for cell in cells if cell.variant == variant]
            answered = [(paid[id(cell)], cell.p95_s) for cell in own if cell.p95_s is not None]
            _points(left, [(paid[id(cell)], 100 * cell.slo_attainment) for cell in own], color, variant)
            _points(right, answered, color, None)
        left.set_ylabel("requests in time, %")
        right.set_ylabel("p95 latency, s")
        left.set_ylim(top=min(left.get_ylim()[1], _ALL_IN_TIME))
        right.set_ylim(0, 1.1 * max((cell.p95_s for cell in cells if cell.p95_s is not None), default=1.0))
        for axes in (left, right):
            axes.set_xlabel("node-seconds" if has_nodes else "replica-seconds")
            axes.grid(alpha=0.15)
        figure.legend(loc="outside right upper", frameon=False, handlelength=1)
        return svg(figure, "Requests in time and latency against the time paid for, by variant")


def replicas_plot(timelines: Mapping[str, Sequence[TimelineSample]], scaled: Sequence[str]) -> str:
    """Replicas of each deployment that scales, of every variant in one run; "" if none scales."""
    present = {name for timeline in timelines.values() for sample in timeline for name in sample.deployments}
    panels = [partial(_replicas, timelines=timelines, name=name) for name in scaled if name in present]
    x_label = "seconds from the start of the run (dotted: running alone)"
    return stacked(panels, "Replicas over time, by variant", x_label) if panels else ""


def _replicas(axes: Axes, timelines: Mapping[str, Sequence[TimelineSample]], name: str) -> None:
    for variant, color in _colored(list(timelines)):
        times, counts = counts_of(timelines[variant], name)
        step = partial(axes.step, times, where="post", color=color)
        step([count.running + count.starting for count in counts], lw=1.2, label=variant)
        step([count.running for count in counts], lw=0.8, ls=":")
    replica_axes(axes, name)


def _points(axes: Axes, points: Sequence[tuple[float, float]], color: str, label: str | None) -> None:
    """Draws points, and their mean larger, with its interval."""
    if points:
        xs, ys = zip(*points, strict=True)
        x, y = Spread.of(xs), Spread.of(ys)
        axes.scatter(xs, ys, s=10, color=color, alpha=0.35, lw=0)
        axes.errorbar(
            [x.mean],
            [y.mean],
            xerr=[[x.mean - x.low], [x.high - x.mean]],
            yerr=[[y.mean - y.low], [y.high - y.mean]],
            fmt="o",
            ms=7,
            lw=1.2,
            color=color,
            label=label,
        )


def _colored(variants: Sequence[str]) -> list[tuple[str, str]]:
    return [(variant, _COLORS[i % len(_COLORS)]) for i, variant in enumerate(variants)]
