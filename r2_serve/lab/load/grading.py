"""Grades the answers of a run when it is over, so that grading takes no time from what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.jsonl import replacing_jsonl
from r2_serve.lab.load.records import LoadRecord
from r2_serve.lab.load.run_directory import REQUESTS, RequestFile

_AT_ONCE = 64


async def grade_run(directory: Path, tasks: Mapping[str, Task]) -> None:
    """Writes verdicts into `requests.jsonl`; `tasks` is by id. Raises: RunError, SandboxUnavailable."""

    async def graded(record: LoadRecord) -> LoadRecord:
        if record.answer is None or record.task_id is None:
            return record
        task = tasks[record.task_id]
        verdict = await grader.grade(task.benchmark, task.row, record.answer, task_id=task.id)
        return record.model_copy(update={"correct": verdict.correct})

    records = iter(RequestFile(directory))
    with replacing_jsonl(directory / REQUESTS) as write:
        async with Grader() as grader:
            while some := list(islice(records, _AT_ONCE)):
                for record in await asyncio.gather(*map(graded, some)):
                    write(record)
