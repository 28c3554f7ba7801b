"""Files and directories that appear whole or not at all, even if the process is killed meanwhile."""

from __future__ import annotations

import codecs
import errno
import json
import logging
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

log = logging.getLogger(__name__)
MOUNTS = Path("/proc/self/mounts")
NETWORK_FILE_SYSTEMS = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
)
"""Types in `/proc/self/mounts`; those under FUSE (`fuse.sshfs`) count as well."""
WRITE_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""Errors of a write to an open file. They name no file; those of a connection in the block do not either."""
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
    """A UTF-8 file that replaces `path` when the block ends without an error. Links and permissions stay.

    Raises: OSError, whose `filename` is `path`, also if the disk is full; the old file is then still there.
    """
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
    except OSError as e:
        if e.filename == str(draft) or (e.filename is None and e.errno in WRITE_ERRORS):
            e.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def open_database(path: Path | None, schema: str) -> sqlite3.Connection:
    """An SQLite database with the tables of `schema`, in memory if `path` is None. It commits each statement.

    Readers never wait, a commit needs no fsync, and writers of other processes are waited for a second. All
    of them must be on one machine (https://sqlite.org/wal.html): a file on the network is a warning.

    Raises: sqlite3.Error.
    """
    if path is not None and (kind := network_file_system(path)):
        log.warning("%s is on a network file system (%s), where SQLite loses writes: %s", path, kind, LOCAL)
    database = sqlite3.connect(
        path or ":memory:", timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        database.execute(f"PRAGMA {setting}")
    database.executescript(schema)
    return database


LOCAL = "name a path on a disk of each machine"


def network_file_system(path: Path, mounts: Path | None = None) -> str | None:
    """The type of the network file system on which `path` is, or will be; None if it is a local one.

    `mounts` is a table like `/proc/self/mounts`. Without one, as on macOS, every path counts as local.
    """
    try:
        lines = (mounts or MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines()
        resolved = path.resolve()
    except OSError:
        return None
    found, kind = Path("/"), ""
    for _, place, mounted, *_ in (line.split(" ") for line in lines):
        mount = Path(place.replace("\\040", " "))
        if resolved.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, mounted
    return kind if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.") else None


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


def encoding_fault(error: UnicodeDecodeError) -> str:
    """What is wrong with a file that is no text in UTF-8, and what to do, for a message that names it."""
    is_utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    kind = "UTF-16 text" if is_utf16 else f"not text in UTF-8 (byte {error.start})"
    return f"it is {kind}; save it as UTF-8"


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
