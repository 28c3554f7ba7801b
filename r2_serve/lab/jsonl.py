"""JSON Lines: one record on each line, appended whole, read back line by line.

A line ends at a line feed and nowhere else, so texts may hold any other separator, such as U+2028. A line is
written whole or not at all: a short write is undone and raised, and what a killed process left of a line is
cut off when the file is opened again. A file has one writer at a time, by a lock that the kernel drops with
its holder; a network file system without locks leaves that to the operator. Lines are never rewritten.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from pydantic import ValidationError

from r2_serve.files import drop_torn_line, json_line, whole_file
from r2_serve.lab.runs import RunError
from r2_serve.types import Record

R = TypeVar("R", bound=Record)
ADVICE = "all earlier rows are kept: free some space and give the same command again"
"""What a user with a full disk should do."""
CHANGED_AT_ONCE = 64


class JsonlLog:
    """Appends records to a file that it locks: `with JsonlLog(path) as log: log.append(record)`.

    Raises: RunError if another process holds the file.
    """

    def __init__(self, path: Path, *, rows_per_sync: int = 32, advice: str = ADVICE) -> None:
        self._path, self._rows_per_sync, self._advice, self._num_unsynced = path, rows_per_sync, advice, 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = drop_torn_line(self._descriptor)
        except BaseException as e:
            os.close(self._descriptor)
            if isinstance(e, BlockingIOError):
                raise RunError(
                    f"{path} is being written by another process: wait for it, or choose another --out"
                ) from e
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def append(self, record: Record) -> None:
        """Raises: RunError if the disk took only a part of the line; that part is removed."""
        line = json_line(record).encode()
        try:
            written = os.write(self._descriptor, line)
        except OSError as e:
            raise RunError(f"{self._path}: {e.strerror}; {self._advice}") from e
        if written != len(line):
            os.ftruncate(self._descriptor, self._size)
            raise RunError(
                f"{self._path}: only {written} of {len(line)} bytes written (disk full?); {self._advice}"
            )
        self._size += written
        self._num_unsynced += 1
        if self._num_unsynced >= self._rows_per_sync:
            os.fsync(self._descriptor)
            self._num_unsynced = 0


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Replace a file by `records`; if one of them cannot be made or written, the old file stays."""
    with whole_file(path) as file:
        file.writelines(map(json_line, records))


async def rewrite_jsonl(path: Path, records: Iterable[R], change: Callable[[R], Awaitable[R]]) -> None:
    """Replace a file by what `change` makes of `records`, 64 at a time and in their order."""
    rest = iter(records)
    with whole_file(path) as file:
        while some := list(islice(rest, CHANGED_AT_ONCE)):
            file.writelines(map(json_line, await asyncio.gather(*map(change, some))))


def whole_lines(path: Path) -> Iterator[bytes]:
    """Read every line; a torn last line is passed over, and a missing file has none."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Read the records of a file in order. Raises: RunError naming a line that is not a `kind`."""
    for number, line in enumerate(whole_lines(path), 1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as e:
            raise RunError(f"{path}:{number} is not a {kind.__name__}: {e.errors()[0]['msg']}") from e
