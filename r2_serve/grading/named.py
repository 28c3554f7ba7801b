"""Graders by name, for rows of any benchmark: those of `answers`, or a user's own function by import path.

An own grader is `MODULE:NAME`, a function of the row and the reply that returns True, False, None (it cannot
tell) or a `Verdict`. It may be asynchronous.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import cast, get_args

from r2_serve.config.imported import imported, is_import_path
from r2_serve.grading.answers import reader
from r2_serve.grading.reading import read_answer
from r2_serve.grading.rows import Benchmark, BenchmarkError, OfficialRow, QaRow, Task, parse_row
from r2_serve.types import GraderName

GRADER_NAMES: tuple[GraderName, ...] = get_args(GraderName)
_SAME_AS: dict[Benchmark, GraderName] = {
    "math": "math", "gsm8k": "number", "words": "number", "csqa": "choice",
}  # fmt: skip
"""Graders by name whose verdicts are those of the benchmark."""
OwnGrader = Callable[[Mapping[str, object], str], object]
_SEVERAL = re.compile(r"\d[^\d]*(?:[,;]\s|\b(?:and|or)\b)[^\d]*\d|\d,\d{1,2}(?!\d)")
"""A gold answer of several numbers, of which a grader would take the last one."""
_HOW = f"give --grader {', '.join(GRADER_NAMES)} or MODULE:NAME, or the field `grader` in each row"


def grader_of(row: OfficialRow, asked: str | None) -> str | None:
    """The grader of a row: the one that was asked for, else the row's own, else `choice` if it has choices.

    None stands for the grader of the benchmark. Raises: BenchmarkError if a row of your own has no grader.
    """
    if asked is not None or not isinstance(row, QaRow):
        return asked
    name = row.grader or ("choice" if row.choices else None)
    if name is None:
        raise BenchmarkError(f"no grader for this row: {_HOW}")
    return name


def with_grader(task: Task, asked: str | None) -> Task:
    """The task with the grader that judges it, once it is sure that this grader can.

    Raises: BenchmarkError, which names the reason; ConfigError for an import path that leads nowhere.
    """
    if asked is None and task.benchmark != "qa":
        return task
    row = parse_row(task.benchmark, task.row)
    name = grader_of(row, asked)
    if name is not None and is_import_path(name):
        own_grader(name)
    elif name is not None:
        gold_answer(known_name(name), row)
    return task.model_copy(update={"grader": name})


def grader_in_books(task: Task) -> GraderName | None:
    """The grader by name that gives the task's verdicts; None if only the benchmark's own can."""
    if task.grader is not None:
        return next((name for name in GRADER_NAMES if name == task.grader), None)
    return _SAME_AS.get(task.benchmark)


def own_grader(import_path: str) -> OwnGrader:
    """The user's function. Raises: ConfigError if it cannot be imported."""
    return cast("OwnGrader", imported(import_path))


def known_name(name: str) -> GraderName:
    """The same name, as one of ours. Raises: BenchmarkError."""
    found = next((known for known in GRADER_NAMES if known == name), None)
    if found is None:
        raise BenchmarkError(f"no grader {name!r}: {_HOW}")
    return found


def gold_answer(name: GraderName, row: OfficialRow) -> str:
    """The gold answer as the grader reads it. Raises: BenchmarkError if it finds none."""
    gold = next(iter(row.golds), None)
    if gold is None:
        raise BenchmarkError(f"the row has no right answer, which grader {name} compares with")
    if name == "choice" and gold in row.choices:
        return gold
    found = read_answer(gold).text if name == "math" else reader(name, row.choices or None)(gold)
    if name == "number" and _SEVERAL.search(gold):
        found = None
    if not found:
        number = "it is no number, or several; write one, with a decimal point"
        what = {"choice": f"none of the choices {list(row.choices)}", "number": number}
        raise BenchmarkError(
            f"grader {name} cannot read the right answer {gold[:60]!r}: {what.get(name, name)}"
        )
    return found


async def own_verdict(import_path: str, row: Mapping[str, object], answer: str) -> object:
    """What the user's function says: a bool, None or a `Verdict`.

    Raises: BenchmarkError if it fails; ConfigError.
    """
    judge = own_grader(import_path)
    try:
        found = judge(row, answer)
        return await cast("Awaitable[object]", found) if inspect.isawaitable(found) else found
    except Exception as e:
        raise BenchmarkError(f"{import_path} failed: {type(e).__name__}: {e}") from e
