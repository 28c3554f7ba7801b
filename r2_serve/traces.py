"""The only writer and the only reader of traces, which are JSON lines.

One file per process and day, `YYYY-MM-DD-PID.jsonl`, mode 0600: a trace holds the query and its answers in
clear, but for the values that `redact` replaces, unless texts are not kept."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from r2_serve.config import ServerConfig
from r2_serve.files import drop_torn_line, json_line
from r2_serve.types import Trace

log = logging.getLogger(__name__)
MOST_TAIL_BYTES = 4_000_000
"""How much of a file is read for its latest traces."""


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class TraceWriter:
    """Appends traces. A failing disk loses traces but fails no query; it is logged and counted."""

    def __init__(
        self,
        directory: Path,
        *,
        keeps_texts: bool = True,
        redact: Callable[[str], str] = str,
        today: Callable[[], str] = _today,
    ) -> None:
        self.num_lost = 0
        self._directory, self._redact, self._today = directory, redact, today
        self._keeps_texts = keeps_texts

    @classmethod
    def of(cls, server: ServerConfig, redact: Callable[[str], str] = str) -> Self:
        """The writer that the config asks for; its `trace_dir` must be set."""
        assert server.trace_dir is not None
        return cls(Path(server.trace_dir), keeps_texts=server.trace_texts, redact=redact)

    def __call__(self, trace: Trace) -> None:
        trace = trace if self._keeps_texts else without_texts(trace)
        line = self._redact(json_line(trace)).encode()
        path = self._directory / f"{self._today()}-{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _append(path, line)
        except OSError as e:
            self.num_lost += 1
            log.warning(
                "trace %s not written to %s: %s (%d lost so far)", trace.request_id, path, e, self.num_lost
            )


def without_texts(trace: Trace) -> Trace:
    """The trace without what clients and models wrote: hashes and figures alone.

    Errors and reasons of fallbacks may quote a provider, which may quote a prompt, so only their first word
    stays.
    """
    results = tuple(result.model_copy(update={"answer": ""}) for result in trace.results)
    decision = trace.decision and trace.decision.model_copy(update={"dropped_plan": None})
    reasons = {name: _first_word(getattr(trace, name)) for name in _REASONS}
    bare = {"query": "", "plan": None, "answer": None, "results": results, "decision": decision}
    return trace.model_copy(update={**bare, **reasons})


_REASONS = ("error", "plan_fallback", "allocation_fallback")


def _first_word(text: str | None) -> str | None:
    """The kind of an error or of a fallback, such as `SubtaskFailed`."""
    return text and text.split()[0].rstrip(":")


def read_traces(path: Path) -> Iterator[Trace]:
    """Traces of a file, or of every `*.jsonl` in a directory, sorted by name. A torn last line is skipped.

    Raises: ValueError with file and line if any other line is not a trace.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        lines = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line or number == len(lines):
                continue
            try:
                yield Trace.model_validate_json(line)
            except ValidationError as e:
                raise ValueError(f"{file}:{number} is not a trace: {e.errors()[0]['msg']}") from e


def latest_traces(directory: Path, count: int) -> list[Trace]:
    """The latest `count` traces that have a date, the oldest first. What cannot be read is left out.

    It reads the last `MOST_TAIL_BYTES` of each of the newest files, until there are enough.
    """
    found: list[Trace] = []
    for file in sorted(directory.glob("*.jsonl"), reverse=True):
        if len(found) >= count:
            break
        found += _tail(file)
    found.sort(key=lambda trace: trace.began_s)
    return found[-count:] if count else []


def _tail(file: Path) -> Iterator[Trace]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - MOST_TAIL_BYTES))
            lines = opened.read().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            trace = Trace.model_validate_json(line)
        except ValidationError:
            continue  # the beginning of a line is missing, or its end
        if trace.began_s:
            yield trace


def _append(path: Path, line: bytes) -> None:
    """Append in one write. Raises: OSError, also if the disk took only a part, which is undone."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = drop_torn_line(descriptor)
        written = os.write(descriptor, line)
        if written != len(line):
            os.ftruncate(descriptor, size)
            raise OSError(f"only {written} of {len(line)} bytes written (disk full?)")
    finally:
        os.close(descriptor)
