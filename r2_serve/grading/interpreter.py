"""The Python that runs inside the sandbox: the same interpreter as ours, with its standard library alone.

It is mounted read-only at `/python`. The unprivileged user that starts bubblewrap cannot mount an interpreter
in a private home (pyenv as root: `/root` is 0700). Such an interpreter is copied once to a world-readable
temporary directory, which takes about a second and 60 MB, and later processes use the copy. Third-party
packages are never visible.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
MOUNT_POINT = "/python"
EXECUTABLE = f"{MOUNT_POINT}/bin/{VERSION}"

_UNNEEDED = (
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip",
    "config-*", "*.opt-?.pyc", "*.a",
)  # fmt: skip
"""Parts of an installation that are not copied."""


def mounts(*, is_other_user: bool) -> list[str]:
    """Arguments of bwrap that mount the interpreter. `is_other_user`: bwrap runs as another user."""
    prefix = Path(sys.base_prefix)
    if is_other_user and not _is_world_readable(prefix / "lib" / VERSION):
        prefix = _staged_copy()
    arguments = [
        part
        for path in _parts(prefix)
        for part in ("--ro-bind", str(path), f"{MOUNT_POINT}/{path.relative_to(prefix)}")
    ]
    packages = prefix / "lib" / VERSION / "site-packages"
    if packages.exists():
        arguments += ["--tmpfs", f"{MOUNT_POINT}/lib/{VERSION}/site-packages"]
    return arguments


def _parts(prefix: Path) -> Iterator[Path]:
    yield prefix / "bin" / VERSION
    yield prefix / "lib" / VERSION
    yield from sorted(path for path in (prefix / "lib").glob(f"lib{VERSION}*.so*") if not path.is_symlink())


def _is_world_readable(path: Path) -> bool:
    modes = [parent.stat().st_mode for parent in (path, *path.parents)]
    return all(mode & stat.S_IXOTH for mode in modes) and bool(modes[0] & stat.S_IROTH)


def _staged_copy() -> Path:
    """A world-readable copy of the interpreter in the temporary directory, which later processes use too.

    Raises: PermissionError if another user could have changed the copy.
    """
    prefix = Path(sys.base_prefix)
    origin = f"{prefix} {(prefix / 'bin' / VERSION).stat().st_mtime_ns}"
    version = hashlib.sha256(origin.encode()).hexdigest()[:12]
    staged = Path(tempfile.gettempdir()) / f"r2-sandbox-{VERSION}-{os.geteuid()}-{version}"
    if not staged.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{staged.name}-"))
        _copy_interpreter(prefix, fresh)
        try:
            fresh.rename(staged)
        except OSError:  # another process was first
            shutil.rmtree(fresh)
    status = staged.lstat()
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise PermissionError(f"other users can change {staged}: remove it, and it is made anew")
    return staged


def _copy_interpreter(prefix: Path, target: Path) -> None:
    for path in _parts(prefix):
        copy = target / path.relative_to(prefix)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns(*_UNNEEDED))
        else:
            shutil.copy2(path, copy)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
