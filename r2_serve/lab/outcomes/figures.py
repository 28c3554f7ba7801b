"""The figures of a replay: every row's accuracy and cost, paired with the reference's.

Figures are means over the splits. Their intervals are over tasks: each task has one value, its mean over the
splits that report it, and tasks are resampled with a fixed seed. So splits that share tasks count no task
twice, and both policies of a pair answer the same tasks.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np

from r2_serve.gates.table import Floats
from r2_serve.lab.outcomes.replay import ACCURATE, BEST_SINGLE, FITTED, ORACLE, REFERENCE, Replay, Split
from r2_serve.lab.runs import code_version, machine_line
from r2_serve.types import Record

NUM_RESAMPLES = 2_000
Interval = tuple[float, float]


class RowFigures(Record):
    """One policy over all splits. Shares and differences are fractions."""

    policy: str
    accuracy: float
    accuracy_ci95: Interval
    accuracy_difference: float
    """The accuracy minus the reference's."""
    accuracy_difference_ci95: Interval
    cost_usd_per_1000: float
    cost_ratio: float | None
    """The cost divided by the reference's; None if that is 0."""
    cost_ratio_ci95: Interval | None
    models_asked: float
    """The mean number of models asked for one task."""
    on_front: bool
    """No other row is at least as accurate and cheaper, the oracle aside."""


class ModelFigures(Record):
    """One model alone, over all tasks of the book."""

    model: str
    accuracy: float
    cost_usd_per_1000: float
    num_replies: int


class SplitFigures(Record):
    """The fitted gate in one split."""

    split: int
    accuracy_difference: float
    accuracy_difference_ci95: Interval
    cost_ratio: float | None
    order: str
    """The models in the order in which they are asked."""
    expected_difference: float
    """The difference that the fit expected."""
    promise_kept: bool | None
    """False if the interval lies wholly below the target's margin; None without a target."""


class ReplayReport(Record):
    """All figures of a replay."""

    book: str
    tasks: int
    """All tasks in the book."""
    num_splits: int
    seed: int
    reference: str
    target: str | None
    confidence: float | None
    accuracy: float
    accuracy_difference: float
    accuracy_difference_ci95: Interval
    cost_ratio: float | None
    cost_ratio_ci95: Interval | None
    gap_closed: float | None
    """The share of the way from the best single model to the oracle that a gate goes for which cost hardly
    matters; None without a gap."""
    promises_kept: int | None
    """The number of splits that kept the target's promise; None without a target."""
    rows: tuple[RowFigures, ...]
    models: tuple[ModelFigures, ...]
    splits: tuple[SplitFigures, ...]
    made: str
    """Date, version and machine."""

    def row(self, policy: str) -> RowFigures:
        """The figures of one row."""
        return next(row for row in self.rows if row.policy == policy)


def report_of(replay: Replay, book: str) -> ReplayReport:
    """The figures of a replay of the book at a path."""
    rows = _on_front([_row(replay, name) for name in replay.rows])
    fitted = next(row for row in rows if row.policy == FITTED)
    splits = tuple(_split(replay, split) for split in replay.splits)
    return ReplayReport(
        book=book,
        tasks=len(replay.table),
        num_splits=len(replay.splits),
        seed=replay.seed,
        reference=replay.reference,
        target=replay.target.text if replay.target else None,
        confidence=replay.target.confidence if replay.target else None,
        accuracy=fitted.accuracy,
        accuracy_difference=fitted.accuracy_difference,
        accuracy_difference_ci95=fitted.accuracy_difference_ci95,
        cost_ratio=fitted.cost_ratio,
        cost_ratio_ci95=fitted.cost_ratio_ci95,
        gap_closed=_gap_closed(rows),
        promises_kept=sum(bool(split.promise_kept) for split in splits) if replay.target else None,
        rows=tuple(rows),
        models=_models(replay),
        splits=splits,
        made=f"{datetime.now(UTC):%Y-%m-%d}, r2 {code_version()}, {machine_line()}",
    )


def _row(replay: Replay, name: str) -> RowFigures:
    right, cost = replay.by_task(name, lambda a: a.right), replay.by_task(name, lambda a: a.cost_usd)
    base_right = replay.by_task(REFERENCE, lambda a: a.right)
    base_cost = replay.by_task(REFERENCE, lambda a: a.cost_usd)
    ratios = replay.cost_ratios(name)
    has_ratio = not np.isnan(ratios).any()
    accuracy = replay.each(name, lambda a: a.accuracy)
    return RowFigures(
        policy=name,
        accuracy=float(accuracy.mean()),
        accuracy_ci95=interval(right),
        accuracy_difference=float((accuracy - replay.each(REFERENCE, lambda a: a.accuracy)).mean()),
        accuracy_difference_ci95=interval(right - base_right),
        cost_usd_per_1000=1000 * float(replay.each(name, lambda a: a.mean_cost_usd).mean()),
        cost_ratio=float(ratios.mean()) if has_ratio else None,
        cost_ratio_ci95=ratio_interval(cost, base_cost) if has_ratio else None,
        models_asked=float(replay.each(name, lambda a: float(a.asked.mean())).mean()),
        on_front=True,
    )


def _on_front(rows: list[RowFigures]) -> list[RowFigures]:
    """The rows, each marked if no other row but the oracle beats it in accuracy and cost."""

    def is_beaten(row: RowFigures) -> bool:
        return any(
            other.accuracy >= row.accuracy and other.cost_usd_per_1000 < row.cost_usd_per_1000
            for other in rows
            if other.policy != ORACLE
        )

    return [row.model_copy(update={"on_front": not is_beaten(row)}) for row in rows]


def _gap_closed(rows: list[RowFigures]) -> float | None:
    by_name = {row.policy: row.accuracy for row in rows}
    gap = by_name[ORACLE] - by_name[BEST_SINGLE]
    return (by_name[ACCURATE] - by_name[BEST_SINGLE]) / gap if gap > 0 else None


def _models(replay: Replay) -> tuple[ModelFigures, ...]:
    table = replay.table
    counts = table.is_asked.sum(axis=0)
    figures = [
        ModelFigures(
            model=model,
            accuracy=float(table.accuracy[i]),
            cost_usd_per_1000=1000 * float(table.mean_cost_usd[i]),
            num_replies=int(counts[i]),
        )
        for i, model in enumerate(table.models)
    ]
    return tuple(sorted(figures, key=lambda model: -model.accuracy))


def _split(replay: Replay, split: Split) -> SplitFigures:
    fitted, reference = split.answers[FITTED], split.answers[REFERENCE]
    bounds = normal_interval(fitted.right - reference.right)
    cost = reference.mean_cost_usd
    return SplitFigures(
        split=split.number,
        accuracy_difference=fitted.accuracy - reference.accuracy,
        accuracy_difference_ci95=bounds,
        cost_ratio=fitted.mean_cost_usd / cost if cost else None,
        order=split.policy.order,
        expected_difference=split.policy.expected_difference,
        promise_kept=None if replay.target is None else bounds[1] >= -replay.target.margin,
    )


# -- intervals -----------------------------------------------------------------------------------------------


def interval(values: Floats) -> Interval:
    """The 95 % bootstrap interval of a mean over tasks; NaN marks a task that no half reports."""
    known = values[~np.isnan(values)]
    return _bounds(known[_resamples(len(known))].mean(axis=1))


def ratio_interval(values: Floats, others: Floats) -> Interval:
    """The 95 % bootstrap interval of a ratio of two means over the same tasks."""
    known = ~np.isnan(values)
    picks = _resamples(int(known.sum()))
    return _bounds(values[known][picks].mean(axis=1) / others[known][picks].mean(axis=1))


def normal_interval(differences: Floats) -> Interval:
    """The 95 % interval of a mean of paired differences."""
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    half = 1.96 * deviation / math.sqrt(len(differences))
    return mean - half, mean + half


def _resamples(size: int) -> np.typing.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, size, size=(NUM_RESAMPLES, size))


def _bounds(means: Floats) -> Interval:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
