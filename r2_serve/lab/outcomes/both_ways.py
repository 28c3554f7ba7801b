"""Tasks that were answered both ways, by a plan and by a direct call: what `plan: auto` is fitted on.

They come from the rows of an `eval` run, or from a book in which both ways stand as models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.errors import BookError
from r2_serve.lab.evaluation.benchmarks import load_tasks
from r2_serve.lab.evaluation.manifest import MANIFEST, Manifest
from r2_serve.lab.evaluation.rows import EvalRow, merged, read_rows
from r2_serve.lab.outcomes.book import Outcome, read_book
from r2_serve.types import CallRecord, CallStage

_PLANNING: tuple[CallStage, ...] = ("decompose", "allocate")


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


def read_both_ways(source: Path, planned: str, direct: str) -> list[BothWays]:
    """The tasks that hold both ways, in a run directory or a book.

    Raises: BookError if there is none, or if a name is unknown; RunError; BenchmarkError; OSError.
    """
    pairs = _of_run(source, planned, direct) if source.is_dir() else _of_book(source, planned, direct)
    if not pairs:
        raise BookError(
            f"{source} holds no task that was answered both by {planned!r}, with a plan, and by {direct!r}"
        )
    return pairs


def _of_run(directory: Path, planned: str, direct: str) -> list[BothWays]:
    if not (directory / MANIFEST).exists():
        raise BookError(f"{directory} is no run of r2-serve eval: it has no {MANIFEST}")
    manifest = Manifest.read(directory)
    _check_names((planned, direct), manifest.policies, directory)
    rows = merged(read_rows(directory))
    tasks = load_tasks(manifest.benchmark, manifest.data)
    found = ((t, rows.get((planned, t.id)), rows.get((direct, t.id))) for t in tasks)
    return [
        _pair_of_rows(task.id, task.query, plan_row, direct_row)
        for task, plan_row, direct_row in found
        if plan_row is not None and direct_row is not None and _is_planned(plan_row) and _is_done(direct_row)
    ]


def _is_done(row: EvalRow) -> bool:
    return not row.may_be_retried and row.outcome.is_cost_known


def _is_planned(row: EvalRow) -> bool:
    """Whether the row paid for a plan: with `plan: auto` some queries went whole."""
    return _is_done(row) and any(call.stage == "decompose" for call in row.outcome.calls)


def _pair_of_rows(task: str, prompt: str, planned: EvalRow, direct: EvalRow) -> BothWays:
    plans = _replies(planned, "decompose")
    return BothWays(
        task=task,
        prompt=prompt,
        planned_right=planned.status == "correct",
        direct_right=direct.status == "correct",
        planned_usd=float(planned.cost_usd),
        direct_usd=float(direct.cost_usd),
        planning_usd=float(total_cost_usd(c for c in planned.outcome.calls if c.stage in _PLANNING)),
        answer_tokens=sum(call.usage.completion_tokens for call in direct.outcome.calls),
        plan_tokens=max((call.usage.completion_tokens for call in plans), default=None),
        step_tokens=tuple(call.usage.completion_tokens for call in _replies(planned, "execute")),
    )


def _replies(row: EvalRow, stage: CallStage) -> list[CallRecord]:
    return [call for call in row.outcome.calls if call.stage == stage and call.outcome == "ok"]


def _of_book(path: Path, planned: str, direct: str) -> list[BothWays]:
    book = [record for record in read_book(path) if not record.step]
    _check_names((planned, direct), sorted({record.model for record in book}), path)
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


def _check_names(asked: Iterable[str], known: Sequence[str], source: Path) -> None:
    for name in asked:
        if name not in known:
            raise BookError(f"{source} has no answers of {name!r}; it has {', '.join(known)}")
