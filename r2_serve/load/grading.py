"""Grades the answers of a run when it is over, so that no comparison takes time from what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from r2_serve.evaluation.graders import Grader
from r2_serve.evaluation.rows import Task
from r2_serve.load.records import RequestRecord
from r2_serve.load.run_directory import RequestFile, rewrite_requests

_AT_ONCE = 64


async def grade_run(directory: Path, tasks: Mapping[str, Task]) -> None:
    """Writes verdicts into `requests.jsonl`. `tasks` is by id. Raises: RunError, SandboxUnavailable."""
    records = list(RequestFile(directory))
    places = asyncio.Semaphore(_AT_ONCE)

    async def graded(record: RequestRecord) -> RequestRecord:
        if record.answer is None or record.task_id is None:
            return record
        task = tasks[record.task_id]
        async with places:
            verdict = await grader.grade(task.benchmark, task.row, record.answer, task_id=task.id)
        return record.model_copy(update={"correct": verdict.correct})

    async with Grader() as grader, asyncio.TaskGroup() as group:
        grades = [group.create_task(graded(record)) for record in records]
    rewrite_requests(directory, (task.result() for task in grades))
