"""The report's pictures, as SVG text for an HTML page. matplotlib without a display; the only module that needs it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2_serve.evaluation.policies import R2
from r2_serve.evaluation.report import PolicyReport, RunReport

Color = tuple[float, float, float, float]
_OURS, _BEST, _OTHER = "#c0392b", "#1f5a8a", "#7d8894"
_STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "r2", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def pareto_plot(report: RunReport) -> str:
    """Accuracy with its interval against total cost per task; a line joins the policies that no other beats.

    Points are numbered by cost, as names of neighbours would cover each other.
    """
    by_cost = sorted(report.policies, key=lambda policy: policy.total_cost_usd)
    front = [policy for policy in by_cost if policy.policy in report.pareto]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, policy in enumerate(by_cost, 1):
            _point(axes, policy, number, report.pareto)
        axes.step(
            [_usd_per_task(p) for p in front], [100 * p.accuracy for p in front], where="post", color=_BEST, lw=1, alpha=0.5, zorder=1
        )
        _scale_costs(axes, [_usd_per_task(policy) for policy in report.policies])
        axes.set_ylim(-6, 112)
        axes.set_xlabel("total cost per task, USD (local models priced)")
        axes.set_ylabel("accuracy, % of all tasks (95 % CI)")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside right upper", frameon=False, handlelength=1)
        return _svg(figure)


def models_plot(report: RunReport) -> str:
    """Tokens per model, one bar per policy; and the share of subtasks per model where plans were run."""
    names = [model.name for model in report.manifest.models if any(model.name in policy.models for policy in report.policies)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.9 + 0.30 * len(report.policies)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        colors = {name: mpl.colormaps["tab10"](i % 10) for i, name in enumerate(names)}
        tokens = {
            name: [p.models[name].usage.total_tokens / p.num_tasks if name in p.models else 0.0 for p in report.policies] for name in names
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
        return _svg(figure)


def _usd_per_task(policy: PolicyReport) -> float:
    return float(policy.total_cost_usd) / policy.num_tasks


def _point(axes: Axes, policy: PolicyReport, number: int, front: Sequence[str]) -> None:
    color = _OURS if policy.policy == R2 else _BEST if policy.policy in front else _OTHER
    accuracy, (low, high) = 100 * policy.accuracy, (100 * bound for bound in policy.accuracy_ci95)
    bars = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
    size, weight = (6, "bold") if policy.policy == R2 else (4, "normal")
    label = f"{number}  {policy.policy}"
    axes.errorbar([_usd_per_task(policy)], [accuracy], yerr=bars, fmt="o", ms=size, color=color, capsize=2, lw=1, label=label)
    offset = (4, 5 if number % 2 else -11)
    axes.annotate(str(number), (_usd_per_task(policy), accuracy), xytext=offset, textcoords="offset points", color=color, weight=weight)


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Logarithmic where costs span more than a decade, but only where none is zero."""
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 4)
    else:
        axes.set_xlim(0, 1.25 * max(costs) or 1)


def _stacked(
    axes: Axes, labels: Sequence[str], values: dict[str, list[float]], colors: dict[str, tuple[float, float, float, float]]
) -> None:
    lefts = [0.0] * len(labels)
    for name, lengths in values.items():
        axes.barh(labels, lengths, left=lefts, color=colors[name], label=name, height=0.7)
        lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]


def _svg(figure: Figure) -> str:
    """The `<svg>` element alone."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
