"""The picture of a replay. Import it only to make a page: matplotlib is heavy."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure

from r2_serve.lab.outcomes.figures import ReplayReport
from r2_serve.lab.outcomes.replay import FITTED
from r2_serve.lab.reports.svg import STYLE, svg

_OURS, _ROW, _MODEL = "#d1495b", "#3a86c8", "#8a94a0"


def front_plot(report: ReplayReport) -> str:
    """The picture of `front_figure` as SVG for a page."""
    figure = front_figure(report)
    with mpl.rc_context(STYLE):
        return svg(figure, f"Accuracy against cost of {len(report.rows)} policies")


def front_figure(report: ReplayReport) -> Figure:
    """Accuracy against cost: policies with their intervals, and single models as small points."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots()
        for model in report.models:
            axes.plot(model.cost_usd_per_1000, 100 * model.accuracy, "o", color=_MODEL, ms=3)
            axes.annotate(model.model, (model.cost_usd_per_1000, 100 * model.accuracy), color=_MODEL, size=7)
        for row in report.rows:
            color = _OURS if row.policy == FITTED else _ROW
            low, high = (100 * bound for bound in row.accuracy_ci95)
            axes.plot([row.cost_usd_per_1000] * 2, [low, high], color=color, lw=1)
            axes.plot(row.cost_usd_per_1000, 100 * row.accuracy, "s", color=color, ms=5)
            at = row.cost_usd_per_1000, 100 * row.accuracy
            axes.annotate(f" {row.policy}", at, color=color, weight="bold" if color == _OURS else "normal")
        if all(model.cost_usd_per_1000 > 0 for model in report.models):
            axes.set_xscale("log")
        axes.set_xlabel("USD for 1,000 tasks")
        axes.set_ylabel("accuracy, % (95 % CI)")
        axes.grid(alpha=0.15)
        return figure
