"""The evaluation report's pictures (`r2_serve.lab.reports.svg`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.evaluation.report.policy import PolicyReport
from r2_serve.lab.reports.svg import STYLE, svg

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points of the figure."""
_OURS, _BEST, _OTHER = "#d1495b", "#3a86c8", "#8a94a0"


def pictures(report: RunReport) -> tuple[str, str]:
    """`pareto_figure` and `models_figure` as SVG for a page."""
    costs = f"Accuracy against total cost per task of {len(report.policies)} policies"
    models = "Tokens per task, and share of subtasks, of each model under each policy"
    with mpl.rc_context(STYLE):
        return svg(pareto_figure(report), costs), svg(models_figure(report), models)


def pareto_figure(report: RunReport) -> Figure:
    """Accuracy with its interval against total cost per task; a line joins the policies that no other beats.

    Points are numbered by cost, as whole names of neighbours would cover each other.
    """
    by_cost = sorted(report.policies, key=lambda policy: policy.total_cost_usd)
    front = [policy for policy in by_cost if policy.policy in report.pareto]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, policy in enumerate(by_cost, 1):
            _point(axes, policy, number, report.pareto)
        axes.step(
            [_usd_per_task(p) for p in front],
            [100 * p.accuracy for p in front],
            where="post",
            color=_BEST,
            lw=1,
            alpha=0.5,
            zorder=1,
        )
        _scale_costs(axes, [_usd_per_task(policy) for policy in report.policies])
        axes.set_ylim(-6, 112)
        axes.set_xlabel("total cost per task, USD (local models priced)")
        axes.set_ylabel("accuracy, % of all tasks (95 % CI)")
        axes.grid(alpha=0.15)
        figure.legend(loc="outside right upper", frameon=False, handlelength=1)
        _number_points(figure, axes, by_cost, report.pareto)
        return figure


def models_figure(report: RunReport) -> Figure:
    """Tokens per model, one bar per policy; and the share of subtasks per model where plans were run."""
    names = [
        model.name
        for model in report.manifest.models
        if any(model.name in policy.models for policy in report.policies)
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.1 + 0.30 * len(report.policies)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        colors = {name: mpl.colormaps["tab10"](i % 10) for i, name in enumerate(names)}
        tokens = {
            name: [
                p.models[name].usage.total_tokens / p.num_tasks if name in p.models else 0.0
                for p in report.policies
            ]
            for name in names
        }
        shares = {name: [100 * policy.share(name) for policy in report.policies] for name in names}
        labels = [policy.policy for policy in report.policies]
        _stacked(left, labels, tokens, colors)
        _stacked(right, labels, shares, colors)
        left.set_xlabel("tokens per task")
        right.set_xlabel("share of subtasks, %")
        left.invert_yaxis()
        handles, _ = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        return figure


def _usd_per_task(policy: PolicyReport) -> float:
    return float(policy.total_cost_usd) / policy.num_tasks


def _color(policy: PolicyReport, front: Sequence[str]) -> str:
    return _OURS if policy.policy == R2 else _BEST if policy.policy in front else _OTHER


def _point(axes: Axes, policy: PolicyReport, number: int, front: Sequence[str]) -> None:
    accuracy, (low, high) = 100 * policy.accuracy, (100 * bound for bound in policy.accuracy_ci95)
    bars = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
    axes.errorbar(
        [_usd_per_task(policy)],
        [accuracy],
        yerr=bars,
        fmt="o",
        ms=6 if policy.policy == R2 else 4,
        color=_color(policy, front),
        capsize=2,
        lw=1,
        label=f"{number}  {policy.policy}",
    )


def _number_points(
    figure: Figure, axes: Axes, policies: Sequence[PolicyReport], front: Sequence[str]
) -> None:
    """Write each number near its point, where it covers no point and no other number."""
    figure.draw_without_rendering()  # places the axes, and so the points
    scale = 72 / figure.dpi

    def place(policy: PolicyReport, share: float) -> tuple[float, float]:
        x, y = scale * axes.transData.transform((_usd_per_task(policy), 100 * share))
        return float(x), float(y)

    points = [place(policy, policy.accuracy) for policy in policies]
    bars = [
        (place(policy, policy.accuracy_ci95[0])[1], place(policy, policy.accuracy_ci95[1])[1])
        for policy in policies
    ]
    taken: list[Box] = [
        (x - 3, min(y - 3, low), x + 3, max(y + 3, high))
        for (x, y), (low, high) in zip(points, bars, strict=True)
    ]
    for number, (policy, (x, y)) in enumerate(zip(policies, points, strict=True), 1):
        width = 5.5 * len(str(number))
        places = [(dx, dy, (x + dx, y + dy, x + dx + width, y + dy + 8)) for dx, dy in _places(width)]
        dx, dy, box = next(
            (place for place in places if not any(_overlap(place[2], other) for other in taken)), places[0]
        )
        taken.append(box)
        axes.annotate(
            str(number),
            (_usd_per_task(policy), 100 * policy.accuracy),
            xytext=(dx, dy),
            textcoords="offset points",
            color=_color(policy, front),
            weight="bold" if policy.policy == R2 else "normal",
        )


def _places(width: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label from its point, the nearest first."""
    for distance in (4.0, 8.0, 14.0, 22.0, 30.0):
        yield from ((distance, 3.0), (distance, -10.0), (-distance - width, 3.0), (-distance - width, -10.0))
        yield from ((-width / 2, distance + 2), (-width / 2, -distance - 10))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Make the axis logarithmic if costs span over a decade; free policies then stand on a linear stretch."""
    paid = [cost for cost in costs if cost > 0]
    if not paid or max(paid) <= 10 * min(paid):
        axes.set_xlim(-0.04 * max(costs) if min(costs) == 0 else 0, 1.15 * max(costs) or 1)
    elif len(paid) == len(costs):
        axes.set_xscale("log")
        axes.set_xlim(min(paid) / 1.6, max(paid) * 1.6)
    else:
        axes.set_xscale("symlog", linthresh=min(paid), linscale=0.3)
        axes.set_xlim(-0.3 * min(paid), max(paid) * 1.6)


def _stacked(
    axes: Axes,
    labels: Sequence[str],
    values: dict[str, list[float]],
    colors: dict[str, tuple[float, float, float, float]],
) -> None:
    lefts = [0.0] * len(labels)
    for name, lengths in values.items():
        axes.barh(labels, lengths, left=lefts, color=colors[name], label=name, height=0.7)
        lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]
