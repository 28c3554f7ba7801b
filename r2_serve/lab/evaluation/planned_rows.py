"""Reads tasks that were answered both ways, by a plan and by a direct call, from a run or a book."""

from __future__ import annotations

from pathlib import Path

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.errors import BookError
from r2_serve.lab.evaluation.benchmarks import load_tasks
from r2_serve.lab.evaluation.manifest import MANIFEST, Manifest
from r2_serve.lab.evaluation.rows import EvalRow, merged, read_rows
from r2_serve.lab.outcomes.both_ways import BothWays, check_names, of_book
from r2_serve.types import CallRecord, CallStage

_PLANNING: tuple[CallStage, ...] = ("decompose", "allocate")


def read_both_ways(source: Path, planned: str, direct: str) -> list[BothWays]:
    """The tasks that hold both ways, in a run directory or a book.

    Raises: BookError if there is none, or if a name is unknown; RunError; BenchmarkError; OSError.
    """
    pairs = _of_run(source, planned, direct) if source.is_dir() else of_book(source, planned, direct)
    if not pairs:
        raise BookError(
            f"{source} holds no task that was answered both by {planned!r}, with a plan, and by {direct!r}"
        )
    return pairs


def _of_run(directory: Path, planned: str, direct: str) -> list[BothWays]:
    if not (directory / MANIFEST).exists():
        raise BookError(f"{directory} is no run of r2-serve eval: it has no {MANIFEST}")
    manifest = Manifest.read(directory)
    check_names((planned, direct), manifest.policies, directory)
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
