"""Functions and classes of a user's own module, named by import path."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2_serve.errors import ConfigError


def is_import_path(text: str) -> bool:
    """Whether a name is MODULE:NAME, and so not one of ours."""
    return ":" in text


def imported(import_path: str) -> object:
    """The object that `MODULE:NAME` names. Modules of the working directory are found too.

    Raises: ConfigError if the module cannot be imported, or has no such name.
    """
    separator = ":" if ":" in import_path else "."
    module_name, _, name = import_path.rpartition(separator)
    if not module_name or not name:
        raise ConfigError(f"got {import_path!r}, expected MODULE:NAME, such as my_package.policies:by_hour")
    try:
        with _importable_from_here():
            module = importlib.import_module(module_name)
        found: object = getattr(module, name, None)
    except (Exception, SystemExit) as e:  # the module is the user's
        text = " ".join(str(e).split())
        raise ConfigError(f"importing {module_name!r} failed: {type(e).__name__}: {text}") from e
    if found is None:
        names = [known for known in vars(module) if not known.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"module {module_name!r} has no {name!r}{hint}")
    if not callable(found):
        raise ConfigError(f"{import_path!r} is a {type(found).__name__}, expected a function or a class")
    return found


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Has modules of the working directory found, as `serve run` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
