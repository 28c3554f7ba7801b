"""`rows.jsonl`: one line for each (policy, task), appended when it ends.

Rows are never rewritten: a failed task that is tried again gets a second row, and `merged` makes one row of
the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.grading.graders import Verdict
from r2_serve.grading.rows import Task, parse_row
from r2_serve.lab.evaluation.desk import EvalOutcome
from r2_serve.lab.jsonl import read_jsonl
from r2_serve.types import Record

RowStatus = Literal["correct", "wrong", "unparsed", "ungradable", "timeout", "error", "failed"]
"""The status of a verdict, where `error` is a fault of the grader; or `failed`, if there is no answer."""
STATUSES: tuple[RowStatus, ...] = get_args(RowStatus)
ROWS = "rows.jsonl"
Key = tuple[str, str]
"""Policy and task id."""


class EvalRow(Record):
    """One task under one policy."""

    policy: str
    task_id: str
    status: RowStatus
    outcome: EvalOutcome
    detail: str = ""
    scores: dict[str, float] = Field(default_factory=dict)
    golds: tuple[str, ...] = ()
    """The right answers, the usual one first; empty if only a program can tell."""

    @property
    def key(self) -> Key:
        return self.policy, self.task_id

    @property
    def cost_usd(self) -> Decimal:
        return total_cost_usd(self.outcome.calls)

    @property
    def spent_usd(self) -> Decimal:
        """What was paid for this row."""
        return self.cost_usd - self.outcome.unpaid_usd

    @property
    def may_be_retried(self) -> bool:
        """True if something other than the answer was at fault."""
        return self.status in ("failed", "error")

    @classmethod
    def of(cls, policy: str, task: Task, outcome: EvalOutcome, verdict: Verdict | None) -> EvalRow:
        """The row of an outcome; `verdict` is None if there was no answer to grade."""
        status: RowStatus = "failed" if verdict is None else verdict.status
        detail = (outcome.error or "") if verdict is None else verdict.detail
        scores = {} if verdict is None else verdict.scores
        return cls(
            policy=policy,
            task_id=task.id,
            status=status,
            outcome=outcome,
            detail=detail,
            scores=scores,
            golds=parse_row(task.benchmark, task.row).golds,
        )


def read_rows(directory: Path) -> Iterator[EvalRow]:
    """Read every row of a run, in the order they ended. Raises: RunError naming a line that is not a row."""
    return read_jsonl(directory / ROWS, EvalRow)


def merged(rows: Iterable[EvalRow]) -> dict[Key, EvalRow]:
    """One row per key: the last one, with the calls of all before it, because failed tries were paid too."""
    last: dict[Key, EvalRow] = {}
    for row in rows:
        earlier = last.get(row.key)
        last[row.key] = row if earlier is None else _with_calls_of(row, earlier)
    return last


def _with_calls_of(row: EvalRow, earlier: EvalRow) -> EvalRow:
    outcome = row.outcome.model_copy(
        update={
            "calls": (*earlier.outcome.calls, *row.outcome.calls),
            "unpaid_usd": earlier.outcome.unpaid_usd + row.outcome.unpaid_usd,
            "is_cost_known": earlier.outcome.is_cost_known and row.outcome.is_cost_known,
        }
    )
    return row.model_copy(update={"outcome": outcome})
