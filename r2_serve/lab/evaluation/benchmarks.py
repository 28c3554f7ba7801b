"""Benchmark files, as their authors publish them, to tasks; and the split by task id.

| benchmark | accepted |
|---|---|
| math | the official directory of JSON files, or JSONL (MATH-500) |
| gsm8k, csqa, musique | the official JSONL |
| p3, champ | the official JSON list |
| scan | the official text file (`IN: jump OUT: I_JUMP` lines); `train`, `simple`, `length` are generated |
| words, everyday | `train` or `test`, generated: 1,000 problems, or N of them as `train@N` |
| qa | JSONL of your own: `question`, `answer`, optionally `choices`, `grader`, `id` |
| MODULE:NAME | a function of yours that gives such rows for what the command names as data |
| any but p3 | `hf:NAME[:CONFIG][@SPLIT]`, a dataset of the Hugging Face hub (needs `datasets`) |

A file with one bad row is refused; the message names the file, the line and the field. Rows are kept
verbatim.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

from r2_serve.config.imported import imported, is_import_path
from r2_serve.errors import R2Error
from r2_serve.files import encoding_fault
from r2_serve.grading.named import with_grader
from r2_serve.grading.rows import BENCHMARKS, Benchmark, BenchmarkError, Task, known_benchmark, task_of
from r2_serve.lab.domains import everyday, scan, words

_SCAN_LINE = re.compile(r"^IN: (.+?) OUT: (.+?)\s*$")
_PROBLEM_SPLIT = re.compile(r"^(train|test)(?:@([1-9][0-9]{0,6}))?$")
_SCAN_SPLITS = ("train", "simple", "length")
_HUB = "hf:"
NUM_PROBLEMS = 1000
"""Generated problems of a split."""

Split = Literal["all", "development", "test"]

Located = tuple[str, Mapping[str, object]]
"""The place of a row ("file:line"), and the row."""


def load_tasks(benchmark: str, source: str | Path, grader: str | None = None) -> tuple[Task, ...]:
    """Every task of a file, directory, generated split or hub dataset in order.

    `benchmark` is a `Benchmark`, or MODULE:NAME of a function of `source` that gives rows of `qa`. `grader`
    judges in place of the benchmark's own, or of the rows' own.
    Raises: BenchmarkError, which names the row; ConfigError for an import path that leads nowhere.
    """
    kind = kind_of(benchmark)
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    read = _own_rows if is_import_path(benchmark) else _read
    for where, row in read(benchmark, str(source)):
        try:
            task = with_grader(task_of(kind, row), grader)
        except BenchmarkError as e:
            raise BenchmarkError(f"{where}: {e.message}") from e
        if task.id in seen:
            raise BenchmarkError(
                f"{where}: task {task.id!r} stands already at {seen[task.id]}: remove one of the two rows, "
                "or give each an `id` of its own"
            )
        seen[task.id] = where
        tasks.append(task)
    if not tasks:
        raise BenchmarkError(f"{source}: holds no {benchmark} rows")
    return tuple(tasks)


def kind_of(benchmark: str) -> Benchmark:
    """The benchmark whose rows these are: `qa` for one of the user's own. Raises: BenchmarkError."""
    try:
        known_benchmark(benchmark)
    except ValueError as e:
        raise BenchmarkError(str(e)) from e
    return next((known for known in BENCHMARKS if known == benchmark), "qa")


def is_generated(benchmark: str, source: str) -> bool:
    """True if `source` names a generated split, which is held out from training as a whole."""
    if benchmark == "scan":
        return source in _SCAN_SPLITS
    return benchmark in ("everyday", "words") and _PROBLEM_SPLIT.match(source) is not None


def split_tasks(
    tasks: Iterable[Task], *, test_share: float = 0.5, salt: str = "r2"
) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(development, test), by task id alone: a task is on the same side in every file and every run."""
    sides: tuple[list[Task], list[Task]] = ([], [])
    for task in tasks:
        sides[is_test(task.id, test_share=test_share, salt=salt)].append(task)
    return tuple(sides[0]), tuple(sides[1])


def is_test(task_id: str, *, test_share: float = 0.5, salt: str = "r2") -> bool:
    """True if an id falls on the test side. Instances of a P3 puzzle, `Name:0` and `Name:1`, go together."""
    return _uniform(salt, re.sub(r":[0-9]+$", "", task_id)) < test_share


def sample_tasks(tasks: Sequence[Task], num_tasks: int, *, salt: str = "r2") -> tuple[Task, ...]:
    """`num_tasks` of them in order, drawn by id alone, so that larger draws hold smaller ones."""
    drawn = sorted(tasks, key=lambda task: _uniform(f"{salt}/sample", task.id))[:num_tasks]
    ids = {task.id for task in drawn}
    return tuple(task for task in tasks if task.id in ids)


def _uniform(salt: str, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:7]) / 2**56


# -- reading -------------------------------------------------------------------------------------------------


def _read(benchmark: str, source: str) -> Iterator[Located]:
    if source.startswith(_HUB):
        return _read_hub(source.removeprefix(_HUB))
    if is_generated(benchmark, source):
        return _generate_scan(source) if benchmark == "scan" else _generate_problems(benchmark, source)
    path = Path(source)
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        return ((str(file), _row(_json(_text(file), str(file)), str(file))) for file in files)
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file or directory")
    if benchmark == "scan":
        return _read_scan(path)
    return _read_list(path) if path.suffix == ".json" else _read_lines(path)


def _own_rows(import_path: str, source: str) -> Iterator[Located]:
    """What a user's function gives for `source`. Raises: BenchmarkError if it fails; ConfigError."""
    load = cast("Callable[[str], Iterable[object]]", imported(import_path))
    try:
        for i, row in enumerate(load(source)):
            yield f"{import_path}[{i}]", _row(row, f"{import_path}[{i}]")
    except R2Error:
        raise
    except Exception as e:
        raise BenchmarkError(f"{import_path}({source!r}) failed: {type(e).__name__}: {e}") from e


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not empty, each with its place. A line ends at a line feed and nowhere else."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _read_lines(path: Path) -> Iterator[Located]:
    for where, line in _lines(path):
        yield where, _row(_json(line, where), where)


def _read_list(path: Path) -> Iterator[Located]:
    rows = _json(_text(path), str(path))
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: expected a JSON list of rows, found {type(rows).__name__}")
    for i, row in enumerate(rows):
        yield f"{path}[{i}]", _row(row, f"{path}[{i}]")


def _read_scan(path: Path) -> Iterator[Located]:
    for where, line in _lines(path):
        match = _SCAN_LINE.match(line)
        if match is None:
            raise BenchmarkError(f"{where}: expected 'IN: <command> OUT: <actions>'")
        yield where, {"commands": match[1], "actions": match[2]}


def _read_hub(name: str) -> Iterator[Located]:
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise BenchmarkError(f"hf:{name}: reading the Hugging Face hub needs `pip install datasets`") from e
    dataset, _, split = name.partition("@")
    dataset, _, config = dataset.partition(":")
    try:
        rows = load_dataset(dataset, config or None, split=split or "test")
    except (OSError, ValueError, RuntimeError) as e:
        raise BenchmarkError(f"hf:{name}: {type(e).__name__}: {str(e)[:300]}") from e
    for i, row in enumerate(rows):
        yield f"hf:{name}[{i}]", dict(row)


def _generate_scan(split: str) -> Iterator[Located]:
    for task in scan.tasks(cast("scan.Split", split)):
        yield f"scan/{split}/{task.id}", {"commands": task.query, "actions": task.gold}


def _generate_problems(benchmark: str, source: str) -> Iterator[Located]:
    split, _, num_tasks = source.partition("@")
    generate = words.tasks if benchmark == "words" else everyday.tasks
    for task in generate("test" if split == "test" else "train", int(num_tasks or NUM_PROBLEMS)):
        yield f"{benchmark}/{split}/{task.id}", {"id": task.id, "query": task.query, "gold": task.gold}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise BenchmarkError(f"{path}: cannot be read: {encoding_fault(e)}") from e
    except OSError as e:
        raise BenchmarkError(f"{path}: cannot be read: {e.strerror or e}") from e


def _json(text: str, where: str) -> object:
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape can stand for half of a surrogate pair, which no request can carry
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as e:
        place = where if where.rsplit(":", 1)[-1].isdigit() else f"{where}:{e.lineno}"
        raise BenchmarkError(f"{place}: not JSON: {e.msg} (column {e.colno})") from e
    except (ValueError, RecursionError) as e:
        raise BenchmarkError(f"{where}: not JSON that can be used: {str(e)[:200]}") from e
    return value


def _row(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BenchmarkError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
