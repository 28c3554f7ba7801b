"""Reads the files in which others publish replies, and makes outcomes of them.

- `recorded` is JSONL: a line `{"task": {"id", "prompt", "gold"}}` for each task, and a line
  `{"id", "model", "prompt_chars", "reply"}` for each reply.
- `zeroeval` is a result file of ZeroEval: a JSON list of one model's results.
- `routerbench` is the CSV of RouterBench: a row for each task, with the columns `MODEL`,
  `MODEL|model_response` and `MODEL|total_cost` for each model.
- `csv` and `jsonl` have a row for each reply; `--column` names its columns (`tabular`).
- `traces` is a directory of traces, joined with the feedback of clients (`served`).

Sources: github.com/WildEval/ZeroEval (result_dirs); github.com/withmartian/routerbench.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from r2_serve.errors import BookError
from r2_serve.files import encoding_fault
from r2_serve.lab.outcomes.book import Outcome, json_lines, open_text
from r2_serve.lab.outcomes.served import outcomes_of, served_queries
from r2_serve.lab.outcomes.tabular import (
    CHARS_PER_TOKEN,
    NUMBERS,
    Source,
    choices_of,
    csv_rows,
    number_of,
    outcome,
    table_csv,
    table_jsonl,
)
from r2_serve.types import GraderName

Prices = Mapping[str, tuple[Decimal, Decimal]]
"""USD per million tokens in and out, by model."""
_WITH_CHOICES = ("mmlu", "hellaswag", "winogrande", "arc-")


def read_prices(path: Path) -> dict[str, tuple[Decimal, Decimal]]:
    """Read a YAML file such as `gpt-4o: [2.5, 10]`: USD per million tokens in and out.

    Raises: BookError if it is not of that form; OSError.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)  # noqa: S506  # nosec B506
        return TypeAdapter(dict[str, tuple[Decimal, Decimal]]).validate_python(loaded)
    except UnicodeDecodeError as e:
        raise BookError(f"{path}: cannot be read: {encoding_fault(e)}") from e
    except (yaml.YAMLError, ValidationError) as e:
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
        "choices": choices_of(task.get("choices")),
        "reply": reply,
        "tokens_in": row.get("tokens_in", round(num_chars / CHARS_PER_TOKEN)),
        "tokens_out": row.get("tokens_out", round(len(reply) / CHARS_PER_TOKEN)),
        **{name: row[name] for name in (*NUMBERS, "right") if row.get(name) is not None},
    }
    return outcome(fields, place)


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
            "choices": choices_of(row.get("choices")),
            "reply": reply,
            "tokens_in": round(len(prompt) / CHARS_PER_TOKEN),
            "tokens_out": round(len(reply) / CHARS_PER_TOKEN),
        }
        yield outcome(fields, place)


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
    for number, row in csv_rows(source.path):
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
                "right": number_of(row.get(model) or "0", f"{place}: {model}") >= Decimal("0.5"),
                "cost_usd": number_of(row.get(f"{model}|total_cost") or "0", f"{place}: {model}|total_cost"),
                "tokens_in": round(len(prompt) / CHARS_PER_TOKEN),
                "tokens_out": round(len(reply) / CHARS_PER_TOKEN),
            }
            yield outcome(fields, place)


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


def _text(row: Mapping[str, object], name: str, place: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        raise BookError(f"{place}: there is no `{name}`; the row has {list(row)}")
    return str(value)


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
