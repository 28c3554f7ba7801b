"""Asynchronous work on many items: a limited number at a time, with a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
R = TypeVar("R")


async def map_all(items: Sequence[T], work: Callable[[T], Awaitable[R]], *, num_at_once: int) -> list[R]:
    """The results of `work` on every item, in order. The first exception cancels the rest and is raised."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for i, item in waiting:
            results[i] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(num_at_once, len(items))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [results[i] for i in range(len(items))]


async def map_with_bar(
    items: Sequence[T],
    work: Callable[[T], Awaitable[R]],
    *,
    num_at_once: int,
    title: str,
    console: Console,
    note: Callable[[], str],
) -> list[R]:
    """`map_all` with a progress bar. `note` gives the text next to the bar."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=len(items), note="")

        async def counted(item: T) -> R:
            result = await work(item)
            progress.update(bar, advance=1, note=note())
            return result

        return await map_all(items, counted, num_at_once=num_at_once)
