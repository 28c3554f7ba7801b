"""Rows in, verdicts out: grades JSONL rows without any model."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, deque
from collections.abc import Iterable
from typing import TextIO

from r2_serve.grading.graders import Grader, GraderConfig, Verdict, printable
from r2_serve.grading.rows import Benchmark, BenchmarkError


def grade_lines(
    benchmark: Benchmark,
    lines: Iterable[str],
    out: TextIO,
    config: GraderConfig | None = None,
    *,
    grader: str | None = None,
) -> Counter[str]:
    """Grade JSONL rows to JSONL verdicts, in order, one for each line that is not blank. Returns the number
    of verdicts of each status.

    A row is `{"id", "answer", "row": <official row>}`, or `{"id", "answer", "gold"}`, where `gold` is the
    short answer (musique: or a list of accepted ones; p3: `{"sat", "ans_type"}`). A bad row gets a verdict of
    status `error`. `grader` stands in for the benchmark's own, as in `Grader.grade`.
    Raises: SandboxUnavailable (p3 only), before the first row.
    """
    return asyncio.run(_grade_lines(benchmark, lines, out, config, grader))


async def _grade_lines(
    benchmark: Benchmark, lines: Iterable[str], out: TextIO, config: GraderConfig | None, by: str | None
) -> Counter[str]:
    statuses: Counter[str] = Counter()

    async def write(pending: asyncio.Task[Verdict]) -> None:
        verdict = await pending
        statuses[verdict.status] += 1
        out.write(f"{verdict.model_dump_json()}\n")

    async with Grader(config) as grader, asyncio.TaskGroup() as group:
        await grader.start(benchmark)
        window: deque[asyncio.Task[Verdict]] = deque()
        for number, line in enumerate((line.removeprefix("\ufeff") for line in lines), 1):
            if not line.strip():
                continue
            window.append(group.create_task(_grade_line(grader, benchmark, line, number, by)))
            if len(window) >= 4 * (os.cpu_count() or 1):
                await write(window.popleft())
        while window:
            await write(window.popleft())
    return statuses


async def _grade_line(
    grader: Grader, benchmark: Benchmark, line: str, number: int, by: str | None
) -> Verdict:
    task_id = f"line {number}"
    try:
        record = json.loads(line)
        if isinstance(record, dict) and record.get("id") is not None:
            task_id = str(record["id"])
        if not isinstance(record, dict) or not isinstance(record.get("answer"), str):
            raise BenchmarkError("expected an object with a text in `answer`")
        if task_id != (task_id := printable(task_id)):
            raise BenchmarkError("`id` holds half of a surrogate pair, which is no character")
        row = _official_row(benchmark, record, task_id)
        return await grader.grade(benchmark, row, record["answer"], task_id=task_id, grader=by)
    except (json.JSONDecodeError, BenchmarkError, RecursionError) as e:
        detail = printable(f"line {number}: {e}"[:500])
        return Verdict(id=task_id, correct=None, status="error", detail=detail)


def _official_row(benchmark: Benchmark, record: dict[str, object], task_id: str) -> dict[str, object]:
    """The official row of a line, or the smallest one that holds its gold."""
    if isinstance(row := record.get("row"), dict):
        return row
    if "gold" not in record:
        raise BenchmarkError("expected `row` (the official row) or `gold`; the line has neither")
    gold = record["gold"]
    match benchmark:
        case "p3" if isinstance(gold, dict):
            return {"name": task_id, **gold}
        case "musique" if isinstance(gold, str) or (isinstance(gold, list) and gold):
            golds = [gold] if isinstance(gold, str) else gold
            return {"id": task_id, "question": "-", "answer": golds[0], "answer_aliases": golds[1:]}
        case "math" if isinstance(gold, str):
            return {"problem": "-", "solution": gold if "boxed" in gold else f"\\boxed{{{gold}}}"}
        case "csqa" if isinstance(gold, str):
            choices = [{"label": label, "text": f"option-{label}"} for label in "ABCDE"]
            return {"id": task_id, "question": {"stem": "-", "choices": choices}, "answerKey": gold.strip()}
        case "scan" if isinstance(gold, str):
            return {"commands": "jump", "actions": gold}
        case "champ" if isinstance(gold, str):
            return {"problem_identifier": task_id, "problem_text": "-", "problem_answer": gold}
        case "gsm8k" if isinstance(gold, str | int | float):
            return {"question": "-", "answer": f"#### {gold}"}
        case "qa":
            kept = {name: record[name] for name in record if name in ("choices", "grader")}
            return {"id": task_id, "question": "-", "answer": gold, **kept}
        case "words" | "everyday" if isinstance(gold, str | int):
            return {"id": task_id, "query": "-", "gold": str(gold)}
    raise BenchmarkError(f"`gold` is of the wrong type for {benchmark}: {type(gold).__name__}")
