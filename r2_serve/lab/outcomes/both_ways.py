"""Tasks that were answered both ways, by a plan and by a direct call: what `plan: auto` is fitted on.

They stand in a book in which both ways are models, or in the rows of a run (`lab.evaluation.planned_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2_serve.errors import BookError
from r2_serve.lab.outcomes.book import Outcome, read_book


@dataclass(frozen=True)
class BothWays:
    """One task, answered by a plan and by a direct call. Costs are in USD, lengths in tokens."""

    task: str
    prompt: str
    planned_right: bool
    direct_right: bool
    planned_usd: float
    direct_usd: float
    answer_tokens: int
    """Length of the direct answer."""
    planning_usd: float | None = None
    """Plan and allocation; None if the source has them not apart, as books have not."""
    plan_tokens: int | None = None
    step_tokens: tuple[int, ...] = ()
    """Length of each step's answer."""


def of_book(path: Path, planned: str, direct: str) -> list[BothWays]:
    """The tasks of a book that hold both ways. Raises: BookError if a name is unknown; OSError."""
    book = [record for record in read_book(path) if not record.step]
    check_names((planned, direct), sorted({record.model for record in book}), path)
    by_task = {(record.task, record.model): record for record in book}
    both = ((r, by_task.get((r.task, direct))) for r in book if r.model == planned)
    return [
        _pair_of_records(record, other)
        for record, other in both
        if other is not None and record.right is not None and other.right is not None
    ]


def _pair_of_records(planned: Outcome, direct: Outcome) -> BothWays:
    return BothWays(
        task=planned.task,
        prompt=planned.prompt or direct.prompt,
        planned_right=bool(planned.right),
        direct_right=bool(direct.right),
        planned_usd=float(planned.cost_usd),
        direct_usd=float(direct.cost_usd),
        answer_tokens=direct.tokens_out,
    )


def check_names(asked: Iterable[str], known: Sequence[str], source: Path) -> None:
    """Raises: BookError for a name that the source does not have."""
    for name in asked:
        if name not in known:
            raise BookError(f"{source} has no answers of {name!r}; it has {', '.join(known)}")
