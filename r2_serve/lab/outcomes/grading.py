"""Grades a book: reads every answer, gathers equal answers of one task, and says which are right.

`grading.answers` reads the answers and `grading.equality` compares them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from r2_serve.errors import BookError
from r2_serve.grading.answers import choices_offered, reader
from r2_serve.grading.equality import Comparer, equal_groups
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.types import GraderName

TASKS_AT_ONCE = 8
Progress = Callable[[int, int], None]
"""Takes the number of tasks that are graded, and of all tasks."""


def graded(
    records: Sequence[Outcome], grader: GraderName | None, progress: Progress | None = None
) -> list[Outcome]:
    """The records with `answer`, `group`, `right` and `grader`; in their order.

    Replies to steps that have no gold answer stay as they are. Without `grader`, each task is graded by
    the grader that its records name. Verdicts of tasks without a gold answer are kept as they are.
    Raises: BookError if a task has no grader.
    """
    return asyncio.run(_graded(records, grader, progress or (lambda done, total: None)))


async def _graded(records: Sequence[Outcome], grader: GraderName | None, progress: Progress) -> list[Outcome]:
    tasks: dict[tuple[str, str], list[int]] = defaultdict(list)
    found = {i: record for i, record in enumerate(records) if is_bare_step(record)}
    for i, record in enumerate(records):
        if i not in found:
            tasks[record.task, record.step].append(i)
    limit, num_done = asyncio.Semaphore(TASKS_AT_ONCE), 0
    workers = Comparer()

    async def one(places: list[int]) -> None:
        nonlocal num_done
        async with limit:
            graded_task = await _graded_task([records[i] for i in places], grader, workers)
        found.update(zip(places, graded_task, strict=True))
        num_done += 1
        progress(num_done, len(tasks))

    try:
        async with asyncio.TaskGroup() as group:
            for places in tasks.values():
                group.create_task(one(places))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await workers.close()
    return [found[i] for i in range(len(records))]


def is_bare_step(record: Outcome) -> bool:
    """Whether it is the reply to a step of a plan, whose right answer is not known."""
    return bool(record.step) and record.gold is None


async def _graded_task(
    records: list[Outcome], grader: GraderName | None, comparer: Comparer
) -> list[Outcome]:
    """The records of one task, graded together."""
    first = records[0]
    name = grader or next((record.grader for record in records if record.grader), None)
    if name is None:
        raise BookError(f"task {first.task} names no grader: give --grader")
    gold = next((record.gold for record in records if record.gold is not None), None)
    choices = _choices(records)
    read = reader(name, choices)
    answers = [read(record.reply) if record.reply else None for record in records]
    compared = gold if name == "math" else _read_gold(gold, read)
    groups = await equal_groups(name, compared, answers, comparer)
    return [
        record.model_copy(
            update={
                "answer": answer,
                "group": number,
                "grader": name,
                "right": record.right if gold is None else number == 0,
            }
        )
        for record, answer, number in zip(records, answers, groups, strict=True)
    ]


def _read_gold(gold: str | None, read: Callable[[str], str | None]) -> str | None:
    """The gold answer in the spelling of answers; as it is written if no answer is found in it."""
    return None if gold is None else read(gold) or gold.strip()


def _choices(records: Iterable[Outcome]) -> dict[str, str]:
    """The choices of a task by their letters: those of the records, else those that the prompt lists."""
    for record in records:
        if record.choices:
            return {chr(ord("A") + i): text for i, text in enumerate(record.choices)}
    return choices_offered(next((record.prompt for record in records if record.prompt), ""))
