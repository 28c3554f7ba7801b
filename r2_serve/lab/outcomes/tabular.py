"""Reads the tables of users: CSV and JSONL with one reply in a row, and makes an outcome of each row."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import BookError
from r2_serve.files import encoding_fault
from r2_serve.lab.outcomes.book import Outcome, json_lines, open_text
from r2_serve.lab.outcomes.served import View
from r2_serve.types import text_hash
from r2_serve.wording import in_plain_words

CHARS_PER_TOKEN = 4
"""Characters of one token, where a file counts no tokens."""
NUMBERS = ("tokens_in", "tokens_out", "tokens_cached", "seconds", "cost_usd", "confidence", "propensity")
COLUMNS = ("task", "model", "prompt", "reply", "gold", "right", "choices", "step", *NUMBERS)
"""The fields of an outcome that a column may give."""
_TEXTS = ("task", "model", "prompt", "reply", "gold", "step")


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
    note: Callable[[str], None] = field(default=lambda text: None)
    """Takes what the user should know of a file that is read."""


def table_csv(source: Source) -> Iterator[Outcome]:
    """Read a CSV with one reply in a row. Raises: BookError, OSError."""
    return _named_rows(source, csv_rows(source.path))


def table_jsonl(source: Source) -> Iterator[Outcome]:
    """Read a JSONL file with one reply in a line. Raises: BookError, OSError."""
    return _named_rows(source, json_lines(source.path))


def _named_rows(source: Source, rows: Iterator[tuple[int, dict[str, object]]]) -> Iterator[Outcome]:
    if unknown := sorted(set(source.columns) - set(COLUMNS)):
        raise BookError(f"--column names no field: {unknown}; the fields are {', '.join(COLUMNS)}")
    names = {name: source.columns.get(name, name) for name in COLUMNS}
    known_columns: set[str] = set()
    golds: dict[tuple[object, object], object] = {}
    for number, row in rows:
        place = f"{source.path}:{number}"
        if new := [column for column in row if column not in known_columns]:
            known_columns.update(new)
            _note_unread(source, new, names)
        if missing := [column for column in source.columns.values() if column not in row]:
            raise BookError(f"{place}: there is no column {missing[0]!r}; the columns are {list(row)}")
        values = {name: row[column] for name, column in names.items() if row.get(column) not in (None, "")}
        _check_model(values, row, names["model"], place)
        record = outcome(_completed(values, number, place), place)
        if record.gold != (known := golds.setdefault((record.task, record.step), record.gold)):
            message = (
                f"task {record.task!r} has the right answer {record.gold!r}, and {known!r} in a row before"
            )
            raise BookError(f"{place}: {message}: a task has one")
        yield record


def _note_unread(source: Source, columns: list[str], names: Mapping[str, str]) -> None:
    """Say which columns stand for no field, so that a misspelt one does not get lost in silence."""
    unread = [column for column in columns if column and column not in names.values()]
    if not unread:
        return
    near = [(_nearest(column, COLUMNS), column) for column in unread]
    hints = [f"--column {found}={column}" for found, column in near if found]
    hint = f"; did you mean {' '.join(hints)}?" if hints else f"; the fields are {', '.join(COLUMNS)}"
    source.note(f"{source.path}: not read: {', '.join(unread)}{hint}")


def _check_model(values: Mapping[str, object], row: Mapping[str, object], column: str, place: str) -> None:
    """Raises: BookError if the row names no model."""
    if "model" in values:
        return
    if column in row:
        raise BookError(f"{place}: the cell of {column!r} is empty: each row needs the model that replied")
    raise BookError(
        f"{place}: there is no column {column!r} (the model that replied); the columns are {', '.join(row)}; "
        f"name yours with --column model={_nearest(column, row) or 'COLUMN'}"
    )


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is spelt like `name`, in capitals or not; None if there is none."""
    by_lower = {other.lower(): other for other in names}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def _completed(values: dict[str, object], number: int, place: str) -> dict[str, object]:
    """The fields of a row as an outcome takes them. Rows with one prompt and no task are one task."""
    prompt = str(values.get("prompt", ""))
    values = {"task": text_hash(prompt) if prompt else str(number), **values}
    values["choices"] = choices_of(values.get("choices"))
    values.update({name: str(values[name]) for name in _TEXTS if name in values})
    values.update({name: str(values[name]).strip() for name in ("task", "model") if name in values})
    values.update({name: number_of(values[name], f"{place}: {name}") for name in NUMBERS if name in values})
    for name, text in (("tokens_in", "prompt"), ("tokens_out", "reply")):
        values.setdefault(name, round(len(str(values.get(text, ""))) / CHARS_PER_TOKEN))
    return values


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Read the rows with their line numbers. Commas, semicolons or tabs part the cells, as in the head.

    Raises: BookError, OSError.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with open_text(path) as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=head.count), skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            if twice := sorted({name for name in names if name and names.count(name) > 1}):
                raise BookError(f"{path}: two columns have the name {twice[0]!r}: rename one")
            reader.fieldnames = names
            for row in reader:
                if None in row:
                    raise BookError(
                        f"{path}:{reader.line_num}: the row has more cells than the head has columns"
                    )
                yield reader.line_num, {name: value or "" for name, value in row.items()}
    except csv.Error as e:
        raise BookError(f"{path}: cannot be read as CSV: {e}; is it whole, with one row in a line?") from e
    except UnicodeDecodeError as e:
        raise BookError(f"{path}: cannot be read: {encoding_fault(e)}") from e


def outcome(fields: Mapping[str, object], place: str) -> Outcome:
    """The outcome with `fields`. Raises: BookError naming the place and the field."""
    prompt = str(fields.get("prompt", ""))
    try:
        return Outcome.model_validate({**fields, "prompt_hash": text_hash(prompt)})
    except ValidationError as e:
        first = e.errors()[0]
        name, fault = ".".join(map(str, first["loc"])), in_plain_words(first["type"], first["msg"])
        raise BookError(f"{place}: {name}: got {str(first['input'])[:60]!r}, {fault}") from e


def choices_of(value: object) -> tuple[str, ...]:
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


def number_of(value: object, place: str) -> Decimal:
    """The number that `value` is or writes. Raises: BookError, also for what is not finite."""
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise BookError(f"{place}: {value!r} is not a number: write it like 1250 or 0.0012")
    return number
