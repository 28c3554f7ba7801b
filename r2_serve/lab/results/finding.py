"""The walk through a directory of runs. Links are not followed, and what cannot be read is said."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from r2_serve.lab.results.kinds import UNREADABLE, ForeignDirectory, is_replay, kind_of, read_run
from r2_serve.lab.results.record import FoundRun, Kind
from r2_serve.lab.runs import RunError

MOST_DIRECTORIES = 5_000
"""Directories that are looked into; a tree of more is cut, and the list says so."""
MOST_ENTRIES = 20_000
"""Entries of one directory that are looked at."""
DEEPEST = 8
"""Levels below the directory that is searched."""
LARGEST_REPLAY = 20_000_000
"""Bytes of the largest JSON file that may be the report of a replay."""
PAGES = {".html", ".svg", ".pdf", ".png"}
"""Files that a person looks at: pages and figures."""
SKIPPED = {"node_modules", "__pycache__", "site-packages"}
"""Directories that hold no run; so do hidden ones and virtual environments."""


@dataclass
class Search:
    """The runs below `root`, and what was left out."""

    root: Path
    runs: list[FoundRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _num_seen: int = 0

    def look_into(self, directory: Path, depth: int = 0) -> None:
        """Add the runs in `directory` and below."""
        self._num_seen += 1
        if self._num_seen == MOST_DIRECTORIES + 1:
            self.notes.append(f"only the first {MOST_DIRECTORIES} directories were searched")
        if self._num_seen > MOST_DIRECTORIES:
            return
        try:
            files, folders = self._entries(directory)
        except OSError as e:
            self._add(directory, None, {"state": "broken", "progress": f"cannot be opened: {e.strerror}"})
            return
        kind = kind_of(files)
        if kind is not None and self._add_run(directory, kind, files):
            return
        for name in sorted(files):
            self._add_replay(directory / name)
        for name in sorted(folders) if depth < DEEPEST else ():
            self.look_into(directory / name, depth + 1)

    def _entries(self, directory: Path) -> tuple[set[str], list[str]]:
        files, folders = set[str](), list[str]()
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number == MOST_ENTRIES:
                    self.notes.append(f"{directory}: only {MOST_ENTRIES} of its entries were looked at")
                    break
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(".") and entry.name not in SKIPPED:
                        folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.add(entry.name)
        return files, [] if "pyvenv.cfg" in files else folders

    def _add_run(self, directory: Path, kind: Kind, files: set[str]) -> bool:
        """Add the run in `directory`; False if it is none after all."""
        pages = sorted((name for name in files if Path(name).suffix in PAGES), key=_pages_first)
        try:
            fields = read_run(kind, directory)
        except ForeignDirectory:
            return False
        except UNREADABLE as e:
            fields = {"state": "broken", "progress": _reason(e)}
        self._add(directory, kind, {"pages": pages, **fields})
        return True

    def _add_replay(self, path: Path) -> None:
        try:
            if path.suffix != ".json" or path.stat().st_size > LARGEST_REPLAY or not is_replay(path):
                return
            fields = read_run("replay", path)
        except UNREADABLE:
            return  # a JSON file of something else
        page = path.with_suffix(".html").name
        self._add(path, "replay", {"pages": [page] if path.with_suffix(".html").exists() else [], **fields})

    def _add(self, path: Path, kind: Kind | None, fields: dict[str, object]) -> None:
        place = path.relative_to(self.root)
        inside = place if path.is_dir() else place.parent
        pages = tuple(str(inside / str(name)) for name in fields.pop("pages", ()))  # type: ignore[attr-defined]
        known = {"path": str(place), "kind": kind, "state": "finished", "pages": pages, **fields}
        run = FoundRun.model_validate(known)
        self.runs.append(run if run.started else run.model_copy(update={"started": _changed(path)}))


def find_runs(root: Path) -> Search:
    """The runs below `root`, which may be a run itself. Raises: RunError if it is no directory."""
    if not root.is_dir():
        kind = "not a directory" if root.exists() else "not there yet: `r2-serve eval run` and others make it"
        raise RunError(f"{root} is {kind}; name another one with --dir")
    search = Search(root)
    search.look_into(root)
    return search


def find_run(root: Path, name: str) -> FoundRun:
    """The run `name` below `root`: its path, or the end of it. Raises: RunError, which lists what fits."""
    runs = find_runs(root).runs
    exact = [run for run in runs if run.path == name]
    fitting = exact or [run for run in runs if f"/{run.path}".endswith(f"/{name.strip('/')}")]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(run.path for run in fitting or runs) or "none"
    raise RunError(f"{root} has {'several runs' if fitting else 'no run'} {name!r}: choose one of {known}")


def _reason(error: Exception) -> str:
    """The fault of a file in a few words."""
    if isinstance(error, KeyError):
        return f"a file lacks {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return str(error) or type(error).__name__


def _pages_first(name: str) -> tuple[bool, str]:
    return not name.endswith(".html"), name


def _changed(path: Path) -> datetime | None:
    """The last change of a file or directory."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
    except OSError:
        return None
