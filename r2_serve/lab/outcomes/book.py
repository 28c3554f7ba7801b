"""The outcome book: one line of JSON for each reply that is known, with its price and its verdict.

A book needs no model and no key to be read again. It may be compressed: a path that ends in `.gz` is.
Records of one task and step repeat the prompt, so that a part of a book is a book.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from r2_serve.errors import BookError
from r2_serve.files import encoding_fault, json_line, whole_file
from r2_serve.types import FinishReason, GraderName, Record, Usage


class RecordedCall(Record):
    """What decided a reply and how it ended, so that a run that asks the same again gets it from the book."""

    key: str
    """The hash of the model's identity, messages, sampling and adapter (`evaluation.booked`)."""
    usage: Usage
    is_usage_estimated: bool = False
    finish_reason: FinishReason = "stop"
    logprobs: bool = False
    """Whether log-probabilities were asked for."""


class Outcome(Record):
    """One reply of one model to one task, or to one step of a task's plan."""

    task: str = Field(min_length=1)
    step: str = ""
    """The step of the plan that was asked; empty if the whole task was asked."""
    model: str = Field(min_length=1)
    prompt: str = ""
    prompt_hash: str = ""
    """The first 16 digits of the SHA-256 hash of the prompt."""
    gold: str | None = None
    choices: tuple[str, ...] = ()
    """The texts of the choices, in the order of their letters."""
    grader: GraderName | None = None
    reply: str = ""
    answer: str | None = None
    """The answer that the grader read in the reply; None if it found none."""
    group: int | None = None
    """Answers to one task that are equal have one number. The gold answer's is 0."""
    right: bool | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    """The score that a client gave; `right` says whether it is 0.5 or more."""
    score_source: str | None = None
    """Who gave the score: `user`, a person, or `check`, a program."""
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    tokens_cached: int = Field(default=0, ge=0)
    """The part of `tokens_in` that the provider read from its cache."""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cost_usd: Decimal = Field(default=Decimal(0), ge=0)
    confidence: float | None = Field(default=None, ge=0, le=1)
    """How sure the model was, such as the mean probability of its tokens."""
    propensity: float | None = Field(default=None, gt=0, le=1)
    """The probability with which the router chose this model; None if every model was asked."""

    call: RecordedCall | None = None
    """None for a reply that was imported: what decided it is not known."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is recorded once in a book: the task, the step and the model."""
        return self.task, self.step, self.model


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading, compressed or not. Raises: OSError."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Read the objects of a JSONL file with their line numbers.

    Raises: BookError if a line holds no object; OSError.
    """
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise BookError(f"{path}:{number}: expected a JSON object, got {line[:40]!r}")
                yield number, value
    except json.JSONDecodeError as e:
        raise BookError(f"{path}:{number}: this is not JSON ({e.msg}); is the file whole?") from e
    except UnicodeDecodeError as e:
        raise BookError(f"{path}: cannot be read: {encoding_fault(e)}") from e
    except (EOFError, gzip.BadGzipFile) as e:
        raise BookError(f"{path}: cannot be read as text: {e}; is the file whole?") from e


def read_book(path: Path) -> list[Outcome]:
    """Read all records; of two with one key, the later one counts. Raises: BookError, OSError."""
    found: dict[tuple[str, str, str], Outcome] = {}
    for number, value in json_lines(path):
        try:
            record = Outcome.model_validate(value)
        except ValidationError as e:
            first = e.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise BookError(
                f"{path}:{number} is no outcome: {place}: {first['msg']}."
                f" Make a book with: r2-serve outcomes import"
            ) from e
        found[record.key] = record
    if not found:
        raise BookError(f"{path} holds no outcome")
    return list(found.values())


def write_book(path: Path, records: Iterable[Outcome]) -> int:
    """Replace the book at `path`; the number of records written. Raises: OSError; the old book then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    if path.suffix == ".gz":
        draft = path.with_name(f".{path.name}.partial")
        with gzip.open(draft, "wt", encoding="utf-8", newline="\n") as file:
            for count, record in enumerate(records, 1):  # noqa: B007
                file.write(json_line(record))
        draft.replace(path)
        return count
    with whole_file(path) as plain:
        for count, record in enumerate(records, 1):  # noqa: B007
            plain.write(json_line(record))
    return count
