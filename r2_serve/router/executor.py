"""Runs a plan as a ready queue over its DAG: a subtask starts the moment its last dependency is answered.

This module only schedules: the caller's `run` does the work of a subtask. There are no levels and no
barriers. If more subtasks are ready than may run at once, those with the longest chain of subtasks after them
go first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from r2_serve.types import Plan, Subtask

Result = TypeVar("Result")
Run = Callable[[Subtask, dict[int, Result]], Awaitable[Result]]
"""Works on a subtask, given the results of the subtasks that it depends on, by id."""


async def execute(plan: Plan, run: Run[Result], *, max_parallel: int) -> dict[int, Result]:
    """Results by subtask id.

    The first failure cancels every running subtask, starts no other, and is raised unchanged once they have
    ended; a cancellation from outside is handled alike."""
    schedule = _Schedule(plan, run, max_parallel)
    cancels_before = _num_cancels()
    try:
        async with asyncio.TaskGroup() as group:
            schedule.start_ready(group)
            await (
                schedule.is_complete.wait()
            )  # here, as a group that is cancelled while it exits keeps the task's cancel count
    except BaseExceptionGroup as failures:
        if (
            _num_cancels() > cancels_before
        ):  # a task group lets what its children raise hide a cancellation from outside
            raise asyncio.CancelledError from failures
        error = _first(failures)
        raise error from error.__cause__
    return schedule.results


class _Schedule(Generic[Result]):
    """Which subtasks wait for which, and which may start now."""

    def __init__(self, plan: Plan, run: Run[Result], max_parallel: int) -> None:
        self.results: dict[int, Result] = {}
        self.is_complete = asyncio.Event()
        self._run, self._free = run, max_parallel
        self._subtasks = {subtask.id: subtask for subtask in plan.subtasks}
        self._waiting = {subtask.id: len(set(subtask.depends_on)) for subtask in plan.subtasks}
        self._users: dict[int, list[int]] = {subtask.id: [] for subtask in plan.subtasks}
        for subtask in plan.subtasks:
            for dependency in set(subtask.depends_on):
                self._users[dependency].append(subtask.id)
        self._height = self._heights()
        self._ready = [(-self._height[i], i) for i, count in self._waiting.items() if count == 0]
        heapq.heapify(self._ready)

    def start_ready(self, group: asyncio.TaskGroup) -> None:
        while self._ready and self._free > 0:
            _, subtask_id = heapq.heappop(self._ready)
            self._free -= 1
            group.create_task(self._work(self._subtasks[subtask_id], group), name=f"subtask-{subtask_id}")

    async def _work(self, subtask: Subtask, group: asyncio.TaskGroup) -> None:
        inputs = {dependency: self.results[dependency] for dependency in subtask.depends_on}
        self.results[subtask.id] = await self._result(subtask, inputs)
        if len(self.results) == len(self._subtasks):
            self.is_complete.set()
        self._free += 1
        for user in self._users[subtask.id]:
            self._waiting[user] -= 1
            if self._waiting[user] == 0:
                heapq.heappush(self._ready, (-self._height[user], user))
        self.start_ready(group)

    async def _result(self, subtask: Subtask, inputs: dict[int, Result]) -> Result:
        """The result of `run`, unless this task was cancelled. A `run` that cancels itself has failed."""
        try:
            result = await self._run(subtask, inputs)
        except asyncio.CancelledError as e:
            if not _num_cancels():
                raise RuntimeError(f"subtask {subtask.id} was cancelled, but not by the executor") from e
            raise
        if _num_cancels():
            raise asyncio.CancelledError
        return result

    def _heights(self) -> dict[int, int]:
        """Length of the longest chain from each subtask to the end, itself included, by id."""
        heights: dict[int, int] = {}
        for subtask_id in sorted(self._subtasks, reverse=True):
            heights[subtask_id] = 1 + max((heights[user] for user in self._users[subtask_id]), default=0)
        return heights


def _num_cancels() -> int:
    """Number of cancellations that the current task was asked for and that were not taken back."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
