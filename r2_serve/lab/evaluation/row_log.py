"""`rows.jsonl`: one line per (policy, task), appended as it ends. The only writer and the only reader.

A line is written whole or not at all: a short write is undone and raised, and what a killed process left of a line is cut
off when the file is opened again. One driver at a time, by a file lock that the kernel drops with its holder; on a
network file system without locks that is up to the operator. Rows are never rewritten: a failed task that is tried
again gets a second row, and `merged` says what the two come to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.errors import R2Error
from r2_serve.files import drop_torn_line
from r2_serve.grading.graders import Verdict
from r2_serve.lab.evaluation.desk import Outcome
from r2_serve.types import Record

RowStatus = Literal["correct", "wrong", "unparsed", "ungradable", "timeout", "error", "failed"]
"""A verdict's, where `error` is the grader's; or `failed`: there was no answer to grade."""
STATUSES: tuple[RowStatus, ...] = ("correct", "wrong", "unparsed", "ungradable", "timeout", "error", "failed")
R = TypeVar("R", bound=Record)
ROWS = "rows.jsonl"
Key = tuple[str, str]
"""Policy and task id."""


RESUME = "all earlier rows are kept: free some space and give the same command again"


class RunError(R2Error):
    """A run directory cannot be used or written; says which and why."""


class RunRow(Record):
    """One task under one policy."""

    policy: str
    task_id: str
    status: RowStatus
    outcome: Outcome
    detail: str = ""
    scores: dict[str, float] = Field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.policy, self.task_id

    @property
    def cost_usd(self) -> Decimal:
        return total_cost_usd(self.outcome.calls)

    @property
    def may_be_retried(self) -> bool:
        """Whether what went wrong was not the answer."""
        return self.status in ("failed", "error")

    @classmethod
    def of(cls, policy: str, task_id: str, outcome: Outcome, verdict: Verdict | None) -> RunRow:
        if verdict is None:
            return cls(
                policy=policy, task_id=task_id, status="failed", outcome=outcome, detail=outcome.error or ""
            )
        status, detail = verdict.status, verdict.detail
        return cls(
            policy=policy,
            task_id=task_id,
            status=status,
            outcome=outcome,
            detail=detail,
            scores=verdict.scores,
        )


class RowLog:
    """Appends rows to one file, which it locks. `with RowLog(path) as log: log.append(row)`. `advice` is for a user whose disk is full.

    Raises: RunError where another process holds the file.
    """

    def __init__(self, path: Path, *, rows_per_sync: int = 32, advice: str = RESUME) -> None:
        self._path, self._rows_per_sync, self._advice, self._num_unsynced = path, rows_per_sync, advice, 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = drop_torn_line(self._descriptor)
        except BaseException as e:
            os.close(self._descriptor)
            if isinstance(e, BlockingIOError):
                raise RunError(
                    f"{path} is being written by another process: wait for it, or choose another --out"
                ) from e
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def append(self, row: Record) -> None:
        """Raises: RunError where the disk took only a part, which is undone."""
        line = row.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
        except OSError as e:
            raise RunError(f"{self._path}: {e.strerror}; {self._advice}") from e
        if written != len(line):
            os.ftruncate(self._descriptor, self._size)
            raise RunError(
                f"{self._path}: only {written} of {len(line)} bytes written (disk full?); {self._advice}"
            )
        self._size += written
        self._num_unsynced += 1
        if self._num_unsynced >= self._rows_per_sync:
            os.fsync(self._descriptor)
            self._num_unsynced = 0


def read_rows(path: Path) -> Iterator[RunRow]:
    """Every row of a run, in the order they ended. Raises: RunError naming a line that is no row."""
    return read_records(path, RunRow)


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Records of any kind that a `RowLog` wrote; a torn last line is passed over. Raises: RunError naming a line that is none."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield kind.model_validate_json(line)
            except ValidationError as e:
                raise RunError(f"{path}:{number} is not a {kind.__name__}: {e.errors()[0]['msg']}") from e


def merged(rows: Iterable[RunRow]) -> dict[Key, RunRow]:
    """One row per key: the last, with the calls of all before it, as a failed try was paid for too."""
    last: dict[Key, RunRow] = {}
    for row in rows:
        earlier = last.get(row.key)
        last[row.key] = row if earlier is None else _with_calls_of(row, earlier)
    return last


def _with_calls_of(row: RunRow, earlier: RunRow) -> RunRow:
    calls = (*earlier.outcome.calls, *row.outcome.calls)
    is_known = earlier.outcome.is_cost_known and row.outcome.is_cost_known
    return row.model_copy(
        update={"outcome": row.outcome.model_copy(update={"calls": calls, "is_cost_known": is_known})}
    )
