"""Files and directories that appear whole or not at all, even if the process is killed meanwhile."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

LOCK_TIMEOUT_S = 1.0
"""Seconds that a database waits for the writer of another process."""


def write_whole(path: Path, text: str) -> None:
    """Replaces the text of `path`; a reader sees the old text or the new one. The file ends with a newline.

    Raises: OSError; the old text is then still there.
    """
    with whole_file(path) as file:
        file.write(text if text.endswith("\n") else f"{text}\n")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file that replaces `path` when the block ends without an error. Links and permissions stay."""
    path = path.resolve()
    draft = _draft_of(path)
    try:
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def open_database(path: Path | None, schema: str) -> sqlite3.Connection:
    """An SQLite database with the tables of `schema`, in memory if `path` is None. It commits each statement.

    Readers never wait, a commit needs no fsync, and writers of other processes are waited for a second.

    Raises: sqlite3.Error.
    """
    database = sqlite3.connect(
        path or ":memory:", timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        database.execute(f"PRAGMA {setting}")
    database.executescript(schema)
    return database


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes `path` when the block ends without an error.

    Raises: OSError if `path` exists by then and is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    draft.mkdir()
    try:
        yield draft
        for file in (*draft.iterdir(), draft):
            _sync(file)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync(path.parent)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text that are not empty, without a byte order mark.

    Only a line feed ends a line: `str.splitlines` would also split at U+2028, which may stand inside JSON.

    Raises: OSError, UnicodeDecodeError.
    """
    return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def json_line(record: BaseModel) -> str:
    """A record as one line of JSON Lines. Half of a surrogate pair, which UTF-8 cannot hold, becomes `?`."""
    try:
        return record.model_dump_json(exclude_defaults=True) + "\n"
    except PydanticSerializationError:
        values = record.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def drop_torn_line(descriptor: int) -> int:
    """Cuts off the last line where a killed process did not finish it; the file's size after that."""
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        start = max(0, end - 65_536)
        end = start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
