"""The directory of a run: its files, which are whole, and the claim on it, so that no other run writes over
it.

requests.jsonl   a line per request, as each ends; with grades once the run is over
timeline.jsonl   a line per interval
starts.log       a line per cold start of a model's replica, of a local cluster
summary.json     the figures
report.html      the page
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.lab.load.records import LoadRecord, TimelineSample
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.runs import put_aside

REQUESTS, TIMELINE, SUMMARY, REPORT = "requests.jsonl", "timeline.jsonl", "summary.json", "report.html"
STARTS = "starts.log"
FREE_SPACE = "free some space and run it again with --set-aside, which keeps what is there"
"""Advice on a full disk. A load cannot continue where it stopped, as its queues are gone."""


@dataclass(frozen=True)
class RunLogs:
    """The two files that grow during a run."""

    requests: JsonlLog
    timeline: JsonlLog


def claim(directory: Path, *, set_aside: bool = False) -> Path | None:
    """Makes `directory`. One that holds a run is renamed if `set_aside`, and the new name returned.

    Raises: ConfigError if it holds a run and `set_aside` is false, if a run is under way, or if it cannot be
    made.
    """
    moved = None
    if any((directory / name).exists() for name in (REQUESTS, SUMMARY)):
        if not set_aside:
            raise ConfigError(
                f"{directory} holds a run already: choose another --out, or keep that one with --set-aside"
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
    """Keeps others from claiming `directory`: the kernel holds the lock until the context or this process
    ends.

    Raises: ConfigError if another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as e:
        raise ConfigError(
            f"a run in {directory} is under way: choose another --out, or wait until it has ended"
        ) from e
    finally:
        os.close(descriptor)


@contextmanager
def logs(directory: Path) -> Iterator[RunLogs]:
    """Opens both files. Raises: RunError if another process writes there, or the disk is full."""
    with _log(directory / REQUESTS) as requests, _log(directory / TIMELINE) as timeline:
        yield RunLogs(requests, timeline)


def _log(path: Path) -> JsonlLog:
    return JsonlLog(path, rows_per_sync=1000, advice=FREE_SPACE)


@dataclass(frozen=True)
class RequestFile:
    """The requests of a run in the order of their ends, read anew each time to save memory."""

    directory: Path

    def __iter__(self) -> Iterator[LoadRecord]:
        """Raises: RunError naming a line that is no record."""
        return read_jsonl(self.directory / REQUESTS, LoadRecord)


def read_timeline(directory: Path) -> Iterator[TimelineSample]:
    """The samples in order. Raises: RunError naming a line that is no sample."""
    return read_jsonl(directory / TIMELINE, TimelineSample)


def write_report(
    directory: Path,
    summary: LoadSummary,
    records: Iterable[LoadRecord],
    timeline: Sequence[TimelineSample],
    *,
    has_page: bool = True,
) -> None:
    """Writes `summary.json` and, if matplotlib is installed, `report.html`. Raises: OSError."""
    write_whole(directory / SUMMARY, summary.model_dump_json(indent=2))
    with suppress(ImportError):
        if has_page:
            from r2_serve.lab.load.page import page

            write_whole(directory / REPORT, page(summary, records, timeline))
