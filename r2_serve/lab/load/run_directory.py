"""The directory of a run: what is in it, that it is not written over, and that its files are whole.

requests.jsonl   a line per request, as each ends; with grades, once the run is over
timeline.jsonl   a line per interval
summary.json     the figures
report.html      the page
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.lab.jsonl import JsonlLog, read_jsonl, replacing_jsonl
from r2_serve.lab.load.records import RequestRecord, TimelineSample
from r2_serve.lab.runs import put_aside

REQUESTS, TIMELINE, SUMMARY, REPORT = "requests.jsonl", "timeline.jsonl", "summary.json", "report.html"
FREE_SPACE = "free some space and run it again with --set-aside, which keeps what is there"
"""A load is not taken up where it broke off: its queues are gone."""


@dataclass(frozen=True)
class RunLogs:
    """The two files that grow while a run goes."""

    requests: JsonlLog
    timeline: JsonlLog


def claim(directory: Path, *, set_aside: bool = False) -> Path | None:
    """Makes `directory`; one that holds a run is renamed where `set_aside` (the new name is given), else refused.

    Raises: ConfigError.
    """
    moved = None
    if any((directory / name).exists() for name in (REQUESTS, SUMMARY)):
        if not set_aside:
            raise ConfigError(
                f"{directory} holds a run already: choose another --out, or keep that one aside with --set-aside"
            )
        with under_way(directory):
            moved = put_aside(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{directory} cannot be made ({e.strerror}): choose another --out") from e
    return moved


@contextmanager
def under_way(directory: Path) -> Iterator[None]:
    """Nobody else claims `directory` meanwhile: the kernel keeps the lock until this process ends it or ends.

    Raises: ConfigError where another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as e:
        raise ConfigError(
            f"{directory} holds a run that is under way: choose another --out, or wait until it has ended"
        ) from e
    finally:
        os.close(descriptor)


@contextmanager
def logs(directory: Path) -> Iterator[RunLogs]:
    """Raises: RunError where another process writes there, or the disk is full."""
    with _log(directory / REQUESTS) as requests, _log(directory / TIMELINE) as timeline:
        yield RunLogs(requests, timeline)


def _log(path: Path) -> JsonlLog:
    return JsonlLog(path, rows_per_sync=1000, advice=FREE_SPACE)


@dataclass(frozen=True)
class RequestFile:
    """The requests of a run in the order in which they ended, read anew each time: a run may be longer than memory."""

    directory: Path

    def __iter__(self) -> Iterator[RequestRecord]:
        """Raises: RunError naming a line that is none."""
        return read_jsonl(self.directory / REQUESTS, RequestRecord)


def read_timeline(directory: Path) -> Iterator[TimelineSample]:
    """In order. Raises: RunError naming a line that is none."""
    return read_jsonl(directory / TIMELINE, TimelineSample)


@contextmanager
def rewriting_requests(directory: Path) -> Iterator[Callable[[RequestRecord], None]]:
    """Takes the records that come in place of those there: all of them, or none where it ends with an error."""
    with replacing_jsonl(directory / REQUESTS) as write:
        yield write
