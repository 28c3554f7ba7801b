"""The figures of a replay: every row's accuracy and cost, paired with the reference's.

Figures are means over the splits. Their intervals are over tasks: each task has one value, its mean over the
splits that report it, and tasks are resampled with a fixed seed. So splits that share tasks count no task
twice, and both policies of a pair answer the same tasks.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from r2_serve.lab.outcomes.replay import ACCURATE, BEST_SINGLE, FITTED, ORACLE, REFERENCE, Replay, Split
from r2_serve.lab.runs import code_version, machine_line
from r2_serve.lab.statistics import (
    MARGIN,
    Interval,
    Verdict,
    mcnemar_p,
    mean_interval,
    normal_interval,
    paired,
)
from r2_serve.types import Record


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
    bootstrap_p: float
    """The two-sided p-value of "as accurate as the reference"."""
    not_worse_p: float
    """The one-sided p-value of "worse than the reference by `margin` or more"."""
    verdict: Verdict
    """The accuracy against the reference's; `lab.statistics` has the meaning."""
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
    mcnemar_p: float
    """McNemar's exact p-value of "as accurate as the reference"; of a mix of gates, each task goes to the
    gate that is more often drawn."""
    promise_kept: bool | None
    """False if the interval lies wholly below the target's margin; None without a target."""


class ReplayReport(Record):
    """All figures of a replay."""

    book: str
    tasks: int
    """All tasks in the book."""
    tasks_compared: int
    """The tasks to which the reference has a reply; the others are left out of fit and report."""
    num_splits: int
    seed: int
    reference: str
    target: str | None
    confidence: float | None
    margin: float
    """The accuracy that a row may lose against the reference and still be called not worse."""
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


def report_of(replay: Replay, book: str, margin: float = MARGIN) -> ReplayReport:
    """The figures of a replay of the book at a path."""
    rows = _on_front([_row(replay, name, margin) for name in replay.rows])
    fitted = next(row for row in rows if row.policy == FITTED)
    splits = tuple(_split(replay, split) for split in replay.splits)
    return ReplayReport(
        book=book,
        tasks=len(replay.book),
        tasks_compared=len(replay.table),
        num_splits=len(replay.splits),
        seed=replay.seed,
        reference=replay.reference,
        target=replay.target.text if replay.target else None,
        confidence=replay.target.confidence if replay.target else None,
        margin=margin,
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


def _row(replay: Replay, name: str, margin: float) -> RowFigures:
    right, cost = replay.by_task(name, lambda a: a.right), replay.by_task(name, lambda a: a.cost_usd)
    base_right = replay.by_task(REFERENCE, lambda a: a.right)
    base_cost = replay.by_task(REFERENCE, lambda a: a.cost_usd)
    known = ~np.isnan(right)
    pair = paired(right[known], base_right[known], cost[known], base_cost[known], margin)
    ratios = replay.cost_ratios(name)
    has_ratio = not np.isnan(ratios).any()
    accuracy = replay.each(name, lambda a: a.accuracy)
    return RowFigures(
        policy=name,
        accuracy=float(accuracy.mean()),
        accuracy_ci95=mean_interval(right[known]),
        accuracy_difference=float((accuracy - replay.each(REFERENCE, lambda a: a.accuracy)).mean()),
        accuracy_difference_ci95=pair.accuracy_difference_ci95,
        cost_usd_per_1000=1000 * float(replay.each(name, lambda a: a.mean_cost_usd).mean()),
        cost_ratio=float(ratios.mean()) if has_ratio else None,
        cost_ratio_ci95=pair.cost_ratio_ci95 if has_ratio else None,
        bootstrap_p=pair.bootstrap_p,
        not_worse_p=pair.not_worse_p,
        verdict=pair.verdict,
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
    table = replay.book
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
    won, lost = ((a.right > 0.5) & (b.right < 0.5) for a, b in ((fitted, reference), (reference, fitted)))
    return SplitFigures(
        split=split.number,
        accuracy_difference=fitted.accuracy - reference.accuracy,
        accuracy_difference_ci95=bounds,
        cost_ratio=fitted.mean_cost_usd / cost if cost else None,
        order=split.policy.order,
        expected_difference=split.policy.expected_difference,
        mcnemar_p=mcnemar_p(int(won.sum()), int(lost.sum())),
        promise_kept=None if replay.target is None else bounds[1] >= -replay.target.margin,
    )
