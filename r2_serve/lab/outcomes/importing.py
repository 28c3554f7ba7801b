"""Reads the files in which others publish replies, and makes outcomes of them.

- `recorded` is JSONL: a line `{"task": {"id", "prompt", "gold"}}` for each task, and a line
  `{"id", "model", "prompt_chars", "reply"}` for each reply.
- `zeroeval` is a result file of ZeroEval: a JSON list of one model's results.
- `routerbench` is the CSV of RouterBench: a row for each task, with the columns `MODEL`,
  `MODEL|model_response` and `MODEL|total_cost` for each model.
- `csv` and `jsonl` have a row for each reply; `--column` names its columns.
- `traces` is a directory of traces, joined with the feedback of clients (`served`).

Sources: github.com/WildEval/ZeroEval (result_dirs); github.com/withmartian/routerbench.
"""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from r2_serve.errors import BookError
from r2_serve.lab.outcomes.book import Outcome, json_lines, open_text
from r2_serve.lab.outcomes.served import View, outcomes_of, served_queries
from r2_serve.types import GraderName, text_hash

CHARS_PER_TOKEN = 4
"""Characters of one token, where a file counts no tokens."""
Prices = Mapping[str, tuple[Decimal, Decimal]]
"""USD per million tokens in and out, by model."""
COLUMNS = (
    *("task", "model", "prompt", "reply", "gold", "right", "step", "tokens_in", "tokens_out"),
    *("tokens_cached", "seconds", "cost_usd", "confidence", "propensity", "choices"),
)
"""The fields of an outcome that a column may give."""
_WITH_CHOICES = ("mmlu", "hellaswag", "winogrande", "arc-")
_NUMBERS = ("tokens_in", "tokens_out", "tokens_cached", "seconds", "cost_usd", "confidence", "propensity")


def read_prices(path: Path) -> dict[str, tuple[Decimal, Decimal]]:
    """Read a YAML file such as `gpt-4o: [2.5, 10]`: USD per million tokens in and out.

    Raises: BookError if it is not of that form; OSError.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506  # nosec B506
        return TypeAdapter(dict[str, tuple[Decimal, Decimal]]).validate_python(loaded)
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as e:
        raise BookError(f"{path}: expected lines such as `gpt-4o: [2.5, 10]` (USD per 1M tokens): {e}") from e


def priced(record: Outcome, prices: Prices) -> Outcome:
    """The record at other prices; unchanged if its model has none. Raises: BookError."""
    if record.model not in prices:
        return record
    into, out = prices[record.model]
    if into < 0 or out < 0:
        raise BookError(f"the price of {record.model} is negative")
    cost = (record.tokens_in * into + record.tokens_out * out) / 1_000_000
    return record.model_copy(update={"cost_usd": cost})


@dataclass(frozen=True)
class Source:
    """One file to import, and what its format leaves open."""

    path: Path
    model: str | None = None
    """The model of a `zeroeval` file; by default the one that its rows name."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field (`csv`, `jsonl`); by default the column of the field's own name."""
    feedback: Path | None = None
    """The database of scores (`traces`); by default the one beside the traces."""
    view: View = "models"
    """What a record of `traces` is about."""


def recorded(source: Source) -> Iterator[Outcome]:
    """Read the format `recorded`. Raises: BookError, OSError."""
    tasks: dict[str, dict[str, object]] = {}
    for number, row in json_lines(source.path):
        place = f"{source.path}:{number}"
        task = row.get("task")
        if isinstance(task, dict):
            tasks[_text(task, "id", place)] = task
            continue
        name = _text(row, "id", place)
        if name not in tasks:
            raise BookError(f"{place}: task {name!r} has no line {{'task': ...}} before its replies")
        yield _reply_record(tasks[name], row, place)


def _reply_record(task: Mapping[str, object], row: Mapping[str, object], place: str) -> Outcome:
    prompt, reply = str(task.get("prompt") or ""), str(row.get("reply") or "")
    num_chars = row.get("prompt_chars", len(prompt))
    if not isinstance(num_chars, int | float):
        raise BookError(f"{place}: `prompt_chars` is not a number: {num_chars!r}")
    gold = task.get("gold")
    fields = {
        "task": _text(task, "id", place),
        "model": _text(row, "model", place),
        "prompt": prompt,
        "gold": None if gold is None else str(gold),
        "choices": _choices(task.get("choices")),
        "reply": reply,
        "tokens_in": row.get("tokens_in", round(num_chars / CHARS_PER_TOKEN)),
        "tokens_out": row.get("tokens_out", round(len(reply) / CHARS_PER_TOKEN)),
        **{name: row[name] for name in (*_NUMBERS, "right") if row.get(name) is not None},
    }
    return _outcome(fields, place)


def zeroeval(source: Source) -> Iterator[Outcome]:
    """Read one result file of ZeroEval. Raises: BookError, OSError."""
    try:
        with open_text(source.path) as file:
            rows = json.load(file)
    except ValueError as e:
        raise BookError(f"{source.path}: this is not JSON: {e}") from e
    if not isinstance(rows, list):
        raise BookError(f"{source.path}: expected a JSON list of results")
    for number, row in enumerate(rows, 1):
        place = f"{source.path}, result {number}"
        if not isinstance(row, dict):
            raise BookError(f"{place}: expected an object")
        output = row.get("output")
        reply = str(output[0] if isinstance(output, list) and output else output or "")
        prompt = _zeroeval_prompt(row)
        fields = {
            "task": _zeroeval_task(row, number),
            "model": source.model or _text(row, "generator", place),
            "prompt": prompt,
            "gold": _zeroeval_gold(row),
            "choices": _choices(row.get("choices")),
            "reply": reply,
            "tokens_in": round(len(prompt) / CHARS_PER_TOKEN),
            "tokens_out": round(len(reply) / CHARS_PER_TOKEN),
        }
        yield _outcome(fields, place)


def _zeroeval_task(row: Mapping[str, object], number: int) -> str:
    """The data set and the id: ids are `gsm8k-main-test-#0` in one data set, and numbers from 0 in others."""
    name = next((row[key] for key in ("id", "session_id") if row.get(key) not in (None, "")), number)
    return f"{row['dataset']}/{name}" if row.get("dataset") else str(name)


def _zeroeval_gold(row: Mapping[str, object]) -> str | None:
    """The gold answer; GSM8K's stands behind a `#`."""
    gold = row.get("answer", row.get("correct_answer"))
    return None if gold is None else str(gold).removeprefix("# ")


def _zeroeval_prompt(row: Mapping[str, object]) -> str:
    """The question as every model got it; `model_input` has it in the chat template of one model."""
    history = row.get("chat_history")
    if isinstance(history, list) and history:
        return str(history[0])
    return next((str(row[name]) for name in ("prompt", "question", "model_input") if row.get(name)), "")


def routerbench(source: Source) -> Iterator[Outcome]:
    """Read the CSV of RouterBench: scores stand in the column of each model, and 1 is right.

    Raises: BookError, OSError.
    """
    for number, row in _csv_rows(source.path):
        place = f"{source.path}:{number}"
        models = [name.removesuffix("|model_response") for name in row if name.endswith("|model_response")]
        if not models or "sample_id" not in row:
            raise BookError(f"{place}: expected the columns `sample_id` and `MODEL|model_response`")
        prompt = _unprinted(str(row.get("prompt", "")))
        for model in models:
            reply = _unprinted(str(row[f"{model}|model_response"]))
            if not reply and not row.get(model):
                continue
            fields = {
                "task": row["sample_id"],
                "model": model,
                "prompt": prompt,
                "grader": grader_of(str(row.get("eval_name", ""))),
                "reply": reply,
                "right": _number(row.get(model) or "0", place) >= Decimal("0.5"),
                "cost_usd": _number(row.get(f"{model}|total_cost") or "0", place),
                "tokens_in": round(len(prompt) / CHARS_PER_TOKEN),
                "tokens_out": round(len(reply) / CHARS_PER_TOKEN),
            }
            yield _outcome(fields, place)


def grader_of(benchmark: str) -> GraderName:
    """How answers of a benchmark of RouterBench are read, to see which agree; its verdicts stay."""
    if benchmark.startswith(_WITH_CHOICES):
        return "choice"
    return "number" if benchmark.startswith("grade-school-math") else "text"


def _unprinted(text: str) -> str:
    """The text of a list of one text, as Python prints it; any other text as it is."""
    if not text.startswith(("['", '["')):
        return text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str) else text


def table_csv(source: Source) -> Iterator[Outcome]:
    """Read a CSV with one reply in a row. Raises: BookError, OSError."""
    return _named_rows(source, _csv_rows(source.path))


def table_jsonl(source: Source) -> Iterator[Outcome]:
    """Read a JSONL file with one reply in a line. Raises: BookError, OSError."""
    return _named_rows(source, json_lines(source.path))


def _named_rows(source: Source, rows: Iterator[tuple[int, dict[str, object]]]) -> Iterator[Outcome]:
    if unknown := set(source.columns) - set(COLUMNS):
        raise BookError(f"--column names no field: {sorted(unknown)}; the fields are {', '.join(COLUMNS)}")
    names = {name: source.columns.get(name, name) for name in COLUMNS}
    for number, row in rows:
        place = f"{source.path}:{number}"
        if missing := [column for column in source.columns.values() if column not in row]:
            raise BookError(f"{place}: there is no column {missing[0]!r}; the columns are {list(row)}")
        values = {name: row[column] for name, column in names.items() if row.get(column) not in (None, "")}
        values = {"task": f"{number}", **values, "choices": _choices(values.get("choices"))}
        for name in ("task", "model", "prompt", "reply", "gold", "step"):
            if name in values:
                values[name] = str(values[name])
        for name in _NUMBERS:
            if isinstance(values.get(name), str):
                values[name] = _number(str(values[name]), place)
        for name, text in (("tokens_in", "prompt"), ("tokens_out", "reply")):
            values.setdefault(name, round(len(str(values.get(text, ""))) / CHARS_PER_TOKEN))
        yield _outcome(values, place)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file)
            for row in reader:
                if None in row:
                    raise BookError(
                        f"{path}:{reader.line_num}: the row has more cells than the head has columns"
                    )
                yield reader.line_num, {name: value or "" for name, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as e:
        raise BookError(f"{path}: this is no CSV in UTF-8: {e}") from e


def _outcome(fields: Mapping[str, object], place: str) -> Outcome:
    """Raises: BookError naming the place and the field."""
    prompt = str(fields.get("prompt", ""))
    try:
        return Outcome.model_validate({**fields, "prompt_hash": text_hash(prompt)})
    except ValidationError as e:
        first = e.errors()[0]
        raise BookError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def _text(row: Mapping[str, object], name: str, place: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        raise BookError(f"{place}: there is no `{name}`; the row has {list(row)}")
    return str(value)


def _choices(value: object) -> tuple[str, ...]:
    """The texts of choices: a list of texts, a mapping by letters, or a JSON text of one of them."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    match value:
        case list():
            return tuple(map(str, value))
        case dict():
            return tuple(str(value[key]) for key in sorted(value))
    return ()


def _number(text: object, place: str) -> Decimal:
    try:
        return Decimal(str(text).strip())
    except InvalidOperation as e:
        raise BookError(f"{place}: {text!r} is not a number") from e


def traces(source: Source) -> Iterator[Outcome]:
    """Read a directory of traces, or one file, with the scores of its queries. Raises: BookError."""
    return outcomes_of(*served_queries(source.path, source.feedback), source.view)


FORMATS = {
    "recorded": recorded,
    "zeroeval": zeroeval,
    "routerbench": routerbench,
    "csv": table_csv,
    "jsonl": table_jsonl,
    "traces": traces,
}
