"""Pictures of an experiment: what each variant reached for what it took, and its replicas over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2_serve.lab.experiment.results import CellFigures
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.reports.svg import STYLE, svg

_COLORS = ("#8a94a0", "#d1495b", "#3a86c8", "#3f9b6b", "#c98a2b", "#7a5ca8")
_ALL_IN_TIME = 104.0
"""Room for a point at 100 %, and no tick above."""


def trade_plot(cells: Sequence[CellFigures], variants: Sequence[str]) -> str:
    """Each run as a point, each variant's mean as a larger one: up and left is better."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        for variant, color in _colored(variants):
            own = [cell for cell in cells if cell.variant == variant]
            _points(left, [(cell.replica_s, 100 * cell.slo_attainment) for cell in own], color, variant)
            _points(
                right, [(cell.replica_s, cell.p95_s) for cell in own if cell.p95_s is not None], color, None
            )
        left.set_ylabel("requests in time, %")
        right.set_ylabel("p95 latency, s")
        left.set_ylim(top=min(left.get_ylim()[1], _ALL_IN_TIME))
        right.set_ylim(0, 1.1 * max((cell.p95_s for cell in cells if cell.p95_s is not None), default=1.0))
        for axes in (left, right):
            axes.set_xlabel("replica-seconds")
            axes.grid(alpha=0.15)
        figure.legend(loc="outside right upper", frameon=False, handlelength=1)
        return svg(figure, "Requests in time and latency against replica-seconds, by variant")


def replicas_plot(timelines: Mapping[str, Sequence[TimelineSample]], scaled: Sequence[str]) -> str:
    """Running and starting replicas of each deployment that scales, of every variant in one run of the same requests.

    Empty where none scales.
    """
    names = [
        name
        for name in scaled
        if any(name in sample.deployments for timeline in timelines.values() for sample in timeline)
    ]
    if not names:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.7 * len(names) + 0.4), layout="constrained")
        for axes, name in zip(
            figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True
        ):
            for variant, color in _colored(list(timelines)):
                seen = [
                    (sample.t_s, sample.deployments[name])
                    for sample in timelines[variant]
                    if name in sample.deployments
                ]
                axes.step(
                    [t for t, _ in seen],
                    [c.running + c.starting for _, c in seen],
                    where="post",
                    color=color,
                    lw=1.2,
                    label=variant,
                )
                axes.step(
                    [t for t, _ in seen],
                    [c.running for _, c in seen],
                    where="post",
                    color=color,
                    lw=0.8,
                    ls=":",
                )
            axes.set_title(name, loc="left", fontsize=9, pad=2)
            axes.set_ylabel("replicas")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(left=0)
            axes.grid(alpha=0.15)
        axes.set_xlabel("seconds from the start of the run (dotted: running alone)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=1)
        return svg(figure, "Replicas over time, by variant")


def _points(axes: Axes, points: Sequence[tuple[float, float]], color: str, label: str | None) -> None:
    """And their mean, larger."""
    if points:
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=18, color=color, alpha=0.5, lw=0)
        axes.scatter([fmean(xs)], [fmean(ys)], s=70, color=color, label=label)


def _colored(variants: Sequence[str]) -> list[tuple[str, str]]:
    return [(variant, _COLORS[i % len(_COLORS)]) for i, variant in enumerate(variants)]
