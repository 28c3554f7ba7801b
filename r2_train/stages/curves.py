"""The picture of a run: metrics over all GRPO steps, and the scores after each half-round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r2_serve.lab.jsonl import read_jsonl
from r2_train.stages.alternate import ROUNDS, RoundRow
from r2_train.stages.run_log import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
SMOOTHING = 0.9
"""Weight of the past in the exponential mean, which is drawn over the raw values of single batches."""
PANELS = {
    "reward": ("reward",),
    "accuracy of rollouts": ("accuracy", "well_formed"),
    "cost of rollouts / reference": ("cost_ratio", "critical_path_ratio"),
}


def draw_curves(directory: Path) -> Path | None:
    """Draws `curves.png` in the run's directory; None if nothing was trained by GRPO yet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, starts = _steps(directory)
    if not steps:
        return None
    shares = tuple(sorted({name for row in steps for name in row if name.startswith("share/")}))
    panels = {**PANELS, "share of the steps by model": shares}
    figure, axes = plt.subplots(len(panels) + 1, 1, figsize=(9, 13), constrained_layout=True)
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _draw_metrics(axis, steps, names, starts)
        axis.set_title(title, fontsize=10, loc="left", pad=14)
    _draw_rounds(axes[-1], list(read_jsonl(directory / ROUNDS, RoundRow)))
    path = directory / CURVES
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _steps(directory: Path) -> tuple[list[dict[str, float]], list[tuple[float, str]]]:
    """The metrics of every GRPO step, numbered through all half-rounds; the start of each half-round."""
    rows: list[dict[str, float]] = []
    starts = []
    for folder in sorted((directory / "rounds").glob("[0-9]*-*")):
        offset = rows[-1]["step"] if rows else 0
        starts.append((offset, folder.name.lstrip("0123456789").removeprefix("-")))
        new = [row for row in read_metrics(folder / METRICS) if "reward" in row]
        rows += [{**row, "step": row["step"] + offset} for row in new]
    return rows, starts


def _draw_metrics(
    axis: Axes, steps: Sequence[dict[str, float]], names: Sequence[str], starts: Sequence[tuple[float, str]]
) -> None:
    for i, name in enumerate(names):
        points = [(row["step"], row[name]) for row in steps if name in row]
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        axis.plot(xs, ys, color=f"C{i}", alpha=0.2, linewidth=0.8)
        axis.plot(xs, _smoothed(ys), color=f"C{i}", label=name.removeprefix("share/"))
    top = ("data", "axes fraction")
    for step, module in starts:
        axis.axvline(step, color="0.7", linewidth=0.8, linestyle=":")
        axis.annotate(f" {module}", (step, 1.0), xycoords=top, fontsize=7, color="0.4", va="bottom")
    axis.set_xlabel("GRPO step, all half-rounds", fontsize=8)
    _finish(axis)


def _draw_rounds(axis: Axes, rows: Sequence[RoundRow]) -> None:
    names = [f"{row.half_round} {row.module or 'SFT'}{'' if row.is_kept else ' (no gain)'}" for row in rows]
    scores = [row.score for row in rows]
    axis.plot(names, [score.accuracy for score in scores], marker="o", label="accuracy")
    axis.plot(names, [score.worker_cost_ratio for score in scores], marker="o", label="workers' cost")
    axis.plot(names, [score.total_cost_ratio for score in scores], marker="o", label="total cost")
    axis.set_title("validation after each half-round, cost over the reference", fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    axis.tick_params(axis="x", labelsize=8)
    _finish(axis)


def _finish(axis: Axes) -> None:
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The exponential mean, corrected for its start."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        means.append(mean / weight)
    return means
