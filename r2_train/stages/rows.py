"""The rows of a stage, one for each task. A stage that was stopped goes on after the last complete row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from r2_serve.errors import EngineUnavailable
from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.types import Record
from r2_train.rollouts.progress import map_with_bar
from r2_train.rollouts.served_pool import ServedPool

SUMMARY = "summary.json"
MAX_FAILED_SHARE = 0.25
"""A stage fails if calls failed in more of its tasks: the pool is down, or a key or an address is wrong."""
LEAST_FAILED = 20
"""So many failed tasks end a stage before the rest is asked."""


class StageRow(Record):
    """What a stage found out about one task."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Identity of the task in the stage's file."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why calls of the task failed. Such a row is no verdict: it is not stored, and asked for again."""

    @property
    @abstractmethod
    def is_kept(self) -> bool:
        """True if the stage found a correct result, which later stages use."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R", bound=StageRow)


async def complete_rows(
    path: Path, kind: type[R], items: Mapping[K, T], work: Callable[[T], Awaitable[R]],
    *, pool: ServedPool, console: Console,
) -> list[R]:  # fmt: skip
    """The rows of all `items`, in order. Only those that `path` lacks are computed, and added to it.

    Raises: RunError; SpendLimitReached, and EngineUnavailable if many calls fail, after which the same call
    goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[Hashable, R] = {row.key: row for row in read_jsonl(path, kind)}
    outages = Outages()
    with JsonlLog(path) as log:

        async def add_row(key: K) -> None:
            done[key] = row = await work(items[key])
            outages.count(row.failure)
            if row.failure is None:
                log.append(row)

        def note() -> str:
            return f"{sum(row.is_kept for row in done.values())} kept, {pool.cache.spent_usd:.6f} USD"

        await map_with_bar(
            [key for key in items if key not in done], add_row,
            num_at_once=pool.num_at_once, title=path.parent.name, console=console, note=note,
        )  # fmt: skip
    outages.check(least=1)
    if outages.num_failed:
        console.print(outages.text)
    return [done[key] for key in items]


@dataclass
class Outages:
    """Counts the tasks whose calls failed, and ends a stage that asks a pool which is down."""

    num_asked: int = 0
    num_failed: int = 0
    first: str = ""

    def count(self, failure: str | None) -> None:
        """Counts one task. Raises: EngineUnavailable."""
        self.num_asked += 1
        if failure is not None:
            self.num_failed += 1
            self.first = self.first or failure
            self.check(least=LEAST_FAILED)

    def check(self, *, least: int) -> None:
        """Raises: EngineUnavailable if `least` tasks failed and more than a share of all."""
        if self.num_failed >= least and self.num_failed > MAX_FAILED_SHARE * self.num_asked:
            raise EngineUnavailable(self.text)

    @property
    def text(self) -> str:
        return (
            f"calls failed in {self.num_failed} of {self.num_asked} tasks, which gives no verdict on them "
            f"(the first: {self.first}). Once the pool answers, give the same command again: it asks for "
            "these tasks only"
        )


def write_summary(directory: Path, summary: Record) -> None:
    (directory / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
