"""Grades a book: reads every answer, gathers equal answers of one task, and says which are right.

Formulas are compared in the killable processes of `grading.math_workers`, each pair once. Every other grader
compares spellings, in this process. The verdict on a formula is that of the graders of MATH.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from r2_serve.grading import grade_math
from r2_serve.grading.math_workers import MathTimeout, MathWorkers
from r2_serve.grading.reading import read_answer
from r2_serve.lab.outcomes.answers import Spelling, choices_in, reader, same_spelling_groups
from r2_serve.lab.outcomes.book import BookError, GraderName, Outcome

COMPARISON_S = 5.0
"""Longest time of one comparison of two formulas; after it they count as different."""
TASKS_AT_ONCE = 8
Progress = Callable[[int, int], None]
"""Takes the number of tasks that are graded, and of all tasks."""


def graded(
    records: Sequence[Outcome], grader: GraderName | None, progress: Progress | None = None
) -> list[Outcome]:
    """The records with `answer`, `group`, `right` and `grader`; in their order.

    Without `grader`, each task is graded by the grader that its records name. Verdicts of tasks without a
    gold answer are kept as they are. Raises: BookError if a task has no grader.
    """
    return asyncio.run(_graded(records, grader, progress or (lambda done, total: None)))


async def _graded(records: Sequence[Outcome], grader: GraderName | None, progress: Progress) -> list[Outcome]:
    tasks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        tasks[record.task, record.step].append(i)
    found: dict[int, Outcome] = {}
    limit, num_done = asyncio.Semaphore(TASKS_AT_ONCE), 0
    workers = _Comparer()

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


async def _graded_task(
    records: list[Outcome], grader: GraderName | None, comparer: _Comparer
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
    if name == "math":
        groups = await _math_groups(None if gold is None else read_answer(gold).text, answers, comparer)
    else:
        groups = same_spelling_groups(_read_gold(gold, read), answers)
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


def _choices(records: Iterable[Outcome]) -> dict[str, str] | None:
    """The choices of a task by their letters: those of the records, else those that the prompt lists."""
    for record in records:
        if record.choices:
            return {chr(ord("A") + i): text for i, text in enumerate(record.choices)}
    found = next((choices_in(record.prompt) for record in records if record.prompt), {})
    return found or dict.fromkeys("ABCDEFGHIJ", "")


async def _math_groups(
    gold: str | None, answers: Sequence[str | None], comparer: _Comparer
) -> list[int | None]:
    """The group of each answer: that of the first earlier answer that is equal."""
    heads: list[tuple[int, Spelling]] = [] if gold is None else [(0, Spelling(gold))]
    known: dict[str, int] = {}
    next_number = 1
    for answer in answers:
        if answer is None or answer in known:
            continue
        spelling = Spelling(answer)
        number = await comparer.first_equal(heads, spelling)
        if number is None:
            number, next_number = next_number, next_number + 1
            heads.append((number, spelling))
        known[answer] = number
    return [None if answer is None else known[answer] for answer in answers]


class _Comparer:
    """Compares formulas; its processes start with the first comparison that needs one."""

    def __init__(self) -> None:
        self._workers: MathWorkers | None = None

    async def first_equal(self, heads: Sequence[tuple[int, Spelling]], answer: Spelling) -> int | None:
        """The number of the first of `heads` that equals `answer`; spellings are tried before values."""
        sure = [head.surely(answer) for _, head in heads]
        if True in sure:
            return heads[sure.index(True)][0]
        for (number, head), known in zip(heads, sure, strict=True):
            if known is None and await self._is_equal(head, answer):
                return number
        return None

    async def _is_equal(self, one: Spelling, other: Spelling) -> bool:
        """The rule of `Grader` for MATH: equal values, or one text after MATH's own normalisation."""
        is_same_text = grade_math.is_equivalent(other.answer, one.answer) and "\\text{ " not in (
            f"{other.answer}{one.answer}"
        )
        if not (one.formula.latex and other.formula.latex) and not (one.formula.base or other.formula.base):
            return is_same_text
        if self._workers is None:
            self._workers = MathWorkers(os.cpu_count() or 1, timeout_s=COMPARISON_S)
        try:
            relation = await self._workers.compare(one.answer, other.answer)
        except MathTimeout:
            return is_same_text
        return relation == "equal" or (is_same_text and relation == "unread")

    async def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            await self._workers.close()
