"""The rows of a stage, one for each task. A stage that was stopped goes on after the last complete row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.types import Record
from r2_train.rollouts.progress import map_with_bar
from r2_train.rollouts.served_pool import ServedPool

SUMMARY = "summary.json"


class StageRow(Record):
    """What a stage found out about one task."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Identity of the task in the stage's file."""

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

    Raises: RunError; SpendLimitReached, after which the same call goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[Hashable, R] = {row.key: row for row in read_jsonl(path, kind)}
    with JsonlLog(path) as log:

        async def add_row(key: K) -> None:
            done[key] = row = await work(items[key])
            log.append(row)

        def note() -> str:
            return f"{sum(row.is_kept for row in done.values())} kept, {pool.cache.spent_usd:.6f} USD"

        await map_with_bar(
            [key for key in items if key not in done], add_row,
            num_at_once=pool.num_at_once, title=path.parent.name, console=console, note=note,
        )  # fmt: skip
    return [done[key] for key in items]


def write_summary(directory: Path, summary: Record) -> None:
    (directory / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
