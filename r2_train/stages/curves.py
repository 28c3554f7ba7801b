"""The pictures of a run: reward, accuracy, cost and the share of each model over the steps of all half-rounds; and the table as points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2_serve.lab.jsonl import read_jsonl
from r2_train.stages.alternate import ROUNDS, RoundRow
from r2_train.stages.run_log import METRICS, read_metrics

CURVES = "curves.png"
SMOOTHING = 0.9
"""Of the exponential mean drawn over the raw values of a step's one batch."""
PANELS = {
    "reward": ("reward",),
    "accuracy of rollouts": ("accuracy", "well_formed"),
    "cost of rollouts / reference": ("cost_ratio", "critical_path_ratio"),
}


def draw_curves(directory: Path) -> Path | None:
    """`curves.png` in the run's directory; None where nothing was trained by reinforcement yet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, starts = _steps(directory)
    if not steps:
        return None
    figure, axes = plt.subplots(5, 1, figsize=(9, 13), constrained_layout=True)
    for axis, (title, names) in zip(axes, PANELS.items(), strict=False):
        _draw(axis, title, steps, names, starts)
    shares = sorted({name for row in steps for name in row if name.startswith("share/")})
    _draw(axes[3], "share of the steps by model", steps, shares, starts)
    _draw_rounds(axes[4], list(read_jsonl(directory / ROUNDS, RoundRow)))
    path = directory / CURVES
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _steps(directory: Path) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """What was logged per step, steps counted through; and where each half-round starts."""
    rows: list[dict[str, Any]] = []
    starts = []
    for folder in sorted((directory / "rounds").glob("[0-9]*-*")):
        offset = rows[-1]["step"] if rows else 0
        starts.append((offset, re.sub(r"^\d+-", "", folder.name)))
        rows += [
            {**row, "step": row["step"] + offset} for row in read_metrics(folder / METRICS) if "reward" in row
        ]
    return rows, starts


def _draw(
    axis: Any,
    title: str,
    steps: Sequence[dict[str, Any]],
    names: Sequence[str],
    starts: Sequence[tuple[int, str]],
) -> None:
    for i, name in enumerate(names):
        points = [(row["step"], row[name]) for row in steps if name in row]
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        axis.plot(xs, ys, color=f"C{i}", alpha=0.2, linewidth=0.8)
        axis.plot(xs, _smoothed(ys), color=f"C{i}", label=name.removeprefix("share/"))
    for offset, module in starts:
        axis.axvline(offset, color="0.7", linewidth=0.8, linestyle=":")
        axis.annotate(
            f" {module}",
            (offset, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            color="0.4",
            va="bottom",
        )
    axis.set_title(title, fontsize=10, loc="left", pad=14)
    axis.set_xlabel("GRPO step, all half-rounds", fontsize=8)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_rounds(axis: Any, rows: Sequence[RoundRow]) -> None:
    names = [f"{row.half_round} {row.module or 'SFT'}{'' if row.is_kept else ' (no gain)'}" for row in rows]
    for label, values in {
        "accuracy": [row.score.accuracy for row in rows],
        "workers' cost": [row.score.worker_cost_ratio for row in rows],
        "total cost": [row.score.total_cost_ratio for row in rows],
    }.items():
        axis.plot(names, values, marker="o", label=label)
    axis.set_title("validation after each half-round, cost over the reference", fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.2)
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        out.append(mean / weight)
    return out
