"""Rows and books at other prices or under another grader, without a call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.grading.graders import Grader
from r2_serve.grading.named import grader_in_books
from r2_serve.grading.rows import Task, parse_row
from r2_serve.lab.evaluation.rows import ROWS, EvalRow, read_rows
from r2_serve.lab.jsonl import JsonlLog, rewrite_jsonl, write_jsonl
from r2_serve.lab.outcomes.book import Outcome, read_book, write_book
from r2_serve.lab.outcomes.grading import graded
from r2_serve.types import CallRecord, ModelCard, text_hash

Cards = Mapping[str, ModelCard]


def reprice_rows(directory: Path, cards: Cards) -> int:
    """Price every call of a run anew; the number of rows. Which model was asked stays, and so does what was
    paid.

    Raises: RunError if the run is under way.
    """
    with JsonlLog(directory / ROWS):
        rows = [_repriced(row, cards) for row in read_rows(directory)]
        write_jsonl(directory / ROWS, rows)
    return len(rows)


def _repriced(row: EvalRow, cards: Cards) -> EvalRow:
    calls = tuple(_call_at(call, cards) for call in row.outcome.calls)
    changed = {"calls": calls, "unpaid_usd": total_cost_usd(calls) - row.spent_usd}
    return row.model_copy(update={"outcome": row.outcome.model_copy(update=changed)})


def _call_at(call: CallRecord, cards: Cards) -> CallRecord:
    card = cards.get(call.model)
    return call if card is None else call.model_copy(update={"cost_usd": card.cost_usd(call.usage)})


async def regrade_rows(directory: Path, tasks: Iterable[Task], grader: Grader) -> int:
    """Grade every answer of a run anew; the number of rows whose status changed.

    Raises: RunError if the run is under way; SandboxUnavailable.
    """
    by_id = {task.id: task for task in tasks}

    num_changed = 0

    async def regraded(row: EvalRow) -> EvalRow:
        nonlocal num_changed
        task = by_id.get(row.task_id)
        if task is None or row.outcome.answer is None:
            return row
        new = EvalRow.of(row.policy, task, row.outcome, await grader.judge(task, row.outcome.answer))
        num_changed += new.status != row.status
        return new

    with JsonlLog(directory / ROWS):
        await rewrite_jsonl(directory / ROWS, read_rows(directory), regraded)
    return num_changed


def reprice_book(path: Path, cards: Cards) -> None:
    """Price the replies of a book anew whose tokens are known in full."""
    records = read_book(path)
    write_book(path, [_record_at(record, cards) for record in records])


def _record_at(record: Outcome, cards: Cards) -> Outcome:
    card = cards.get(record.model)
    if card is None or record.call is None:
        return record
    return record.model_copy(update={"cost_usd": card.cost_usd(record.call.usage)})


async def grade_book(path: Path, tasks: Sequence[Task], grader: Grader, *, is_all: bool) -> None:
    """Grade the replies to whole tasks: those of tasks with a reply that has no verdict, or all.

    A record gets its gold answer and the name of its grader where that is one of `named.GRADER_NAMES`. Other
    graders, such as a sandbox or a function of the user's own, give their verdict alone, and answers are then
    equal if their texts are.
    """
    records = read_book(path)
    by_id = {task.id: task for task in tasks}
    ours = [i for i, record in enumerate(records) if _is_of(record, by_id.get(record.task))]
    open_tasks = {records[i].task for i in ours if is_all or records[i].right is None}
    places = [i for i in ours if records[i].task in open_tasks]
    if not places:
        return
    ready = [await _judged(records[i], by_id[records[i].task], grader) for i in places]
    for i, record in zip(places, await asyncio.to_thread(graded, ready, None), strict=True):
        records[i] = record
    write_book(path, records)


def _is_of(record: Outcome, task: Task | None) -> bool:
    is_whole = task is not None and not record.step
    return is_whole and task is not None and record.prompt_hash == text_hash(task.query)


async def _judged(record: Outcome, task: Task, grader: Grader) -> Outcome:
    """The record with what decides its verdict."""
    name, row = grader_in_books(task), parse_row(task.benchmark, task.row)
    if name is None:
        right = (await grader.judge(task, record.reply)).correct
        return record.model_copy(update={"grader": "text", "gold": None, "choices": (), "right": right})
    known = {"grader": name, "gold": row.golds[0], "choices": tuple(row.choices.values())}
    return record.model_copy(update=known)
