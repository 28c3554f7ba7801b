"""The only writer and the only reader of traces, which are JSON lines.

One file per process and day, `YYYY-MM-DD-PID.jsonl`, mode 0600: a trace holds the query and its answers in
clear, but for the values that `redact` replaces."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from r2_serve.files import drop_torn_line, json_line
from r2_serve.types import Trace

log = logging.getLogger(__name__)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class TraceWriter:
    """Appends traces. A failing disk loses traces but fails no query; it is logged and counted."""

    def __init__(
        self, directory: Path, *, redact: Callable[[str], str] = str, today: Callable[[], str] = _today
    ) -> None:
        self.num_lost = 0
        self._directory, self._redact, self._today = directory, redact, today

    def __call__(self, trace: Trace) -> None:
        line = self._redact(json_line(trace)).encode()
        path = self._directory / f"{self._today()}-{os.getpid()}.jsonl"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _append(path, line)
        except OSError as e:
            self.num_lost += 1
            log.warning(
                "trace %s not written to %s: %s (%d lost so far)", trace.request_id, path, e, self.num_lost
            )


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
