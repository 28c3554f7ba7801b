"""What every kind of run leaves next to its results: an earlier run put aside, and what made it.

Evaluations, loads, simulations, experiments, the demo and training share it. What is in their files is
theirs.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import r2_serve
from r2_serve.errors import R2Error


class RunError(R2Error):
    """A run directory cannot be used or written; the message says which one and why."""


def put_aside(directory: Path) -> Path:
    """Rename `directory` to the first free of NAME.1, NAME.2, ...; the new name."""
    names = (directory.with_name(f"{directory.name}.{i}") for i in itertools.count(1))
    return directory.rename(next(name for name in names if not name.exists()))


@cache
def code_version() -> str:
    """The version of the package, and a hash of its source."""
    root, digest = Path(r2_serve.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode())
        digest.update(file.read_bytes())
    return f"{r2_serve.__version__}+{digest.hexdigest()[:12]}"


def machine() -> dict[str, str | int | None]:
    """This machine, as far as the reader of a figure needs it."""
    return {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}


@cache
def packages() -> dict[str, str]:
    """The versions of the installed packages that this one can use."""
    found: dict[str, str] = {}
    for line in requires("route-and-reason") or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def machine_line() -> str:
    """The same in one line."""
    return "{cpus} CPUs, {platform}, Python {python}".format_map(machine())
