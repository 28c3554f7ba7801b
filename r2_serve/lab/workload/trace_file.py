"""Published traces of LLM services: the times of requests and their numbers of tokens.

| format | columns used | times |
|---|---|---|
| burstgpt | `Timestamp`, `Request tokens`, `Response tokens` (releases 1 and 2) | seconds |
| azure | `TIMESTAMP`, `ContextTokens`, `GeneratedTokens` (2023 and 2024) | ISO, with or without an offset |

Source: github.com/HPMLL/BurstGPT (arXiv 2401.17644) and github.com/Azure/AzurePublicDataset (arXiv
2311.18677, 2408.00741). A row without generated tokens is a request that failed there, and is left out. Files
are read row by row as they are used, as the larger ones hold millions. A row that cannot be read or is
earlier than the one before it is an error with its line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Literal

from r2_serve.errors import ConfigError
from r2_serve.files import encoding_fault
from r2_serve.lab.workload.arrivals import MAX_DURATION_S, TraceArrivals

MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    time_s: float
    """Time since the first row that is taken, at the chosen pace."""
    prompt_tokens: int
    reply_tokens: int


@dataclass(frozen=True)
class _Columns:
    time: str
    prompt: str
    reply: str
    seconds: Callable[[str], float]


def _iso_seconds(text: str) -> float:
    """Reads a time without an offset as UTC: in local time one hour a year comes twice."""
    time = datetime.fromisoformat(text.strip())
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


_FORMATS: dict[Literal["burstgpt", "azure"], _Columns] = {
    "burstgpt": _Columns("Timestamp", "Request tokens", "Response tokens", float),
    "azure": _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _iso_seconds),
}


def trace_rows(arrivals: TraceArrivals) -> Iterator[TraceRow]:
    """The rows of `arrivals.path`. Raises: ConfigError naming file and line."""
    with closing(_located_rows(Path(arrivals.path), _FORMATS[arrivals.format])) as located:
        answered = (row for row in located if row.reply_tokens > 0)
        stop = None if arrivals.limit is None else arrivals.skip + arrivals.limit
        first_s: float | None = None
        for row in islice(answered, arrivals.skip, stop):
            first_s = row.time_s if first_s is None else first_s
            start_s = (row.time_s - first_s) / arrivals.speedup
            if start_s > MAX_DURATION_S:
                raise ConfigError(
                    f"{arrivals.path}: a row comes {start_s:g} s after the first, and the longest run is "
                    f"{MAX_DURATION_S:g} s. Are its times in seconds? If so, give a limit or a speedup"
                )
            yield TraceRow(start_s, row.prompt_tokens, row.reply_tokens)


def _located_rows(path: Path, columns: _Columns) -> Generator[TraceRow, None, None]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_header(path, reader.fieldnames or (), columns)
            last_s = float("-inf")
            for record in reader:
                row = _row(f"{path}:{reader.line_num}", record, columns)
                if row.time_s < last_s:
                    raise ConfigError(
                        f"{path}:{reader.line_num}: earlier than the row before it: "
                        f"sort the file by {columns.time!r} first"
                    )
                last_s = row.time_s
                yield row
    except UnicodeDecodeError as e:
        raise ConfigError(f"trace {path} cannot be read: {encoding_fault(e)}") from e
    except (OSError, csv.Error) as e:
        raise ConfigError(f"trace {path} cannot be read: {e}") from e


def _check_header(path: Path, names: Sequence[str], columns: _Columns) -> None:
    missing = [name for name in (columns.time, columns.prompt, columns.reply) if name not in names]
    if missing:
        fits = (name for name, c in _FORMATS.items() if {c.time, c.prompt, c.reply} <= set(names))
        hint = f"; it looks like `format: {fit}`" if (fit := next(fits, None)) else ""
        found = ", ".join(map(repr, names)) or "nothing"
        raise ConfigError(f"{path}:1: no column {', '.join(map(repr, missing))}; found {found}{hint}")


def _row(where: str, record: dict[str, str], columns: _Columns) -> TraceRow:
    try:
        prompt, reply = int(record[columns.prompt]), int(record[columns.reply])
        row = TraceRow(columns.seconds(record[columns.time]), prompt, reply)
    except (ValueError, TypeError, AttributeError) as e:
        names = f"{columns.time!r}, {columns.prompt!r} or {columns.reply!r}"
        raise ConfigError(f"{where}: {names} cannot be read: {e}") from e
    if not isfinite(row.time_s):
        raise ConfigError(f"{where}: {columns.time!r} is {record[columns.time]!r}, which is no time")
    if not (0 <= prompt <= MAX_TOKENS and 0 <= reply <= MAX_TOKENS):
        raise ConfigError(f"{where}: {prompt} and {reply} tokens; each may be 0 to {MAX_TOKENS:,}")
    return row
