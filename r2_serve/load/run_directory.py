"""The directory of a run: what is in it, that it is not written over, and that its files are whole.

requests.jsonl   a line per request, as each ends; with grades, once the run is over
timeline.jsonl   a line per interval
summary.json     the figures
report.html      the page
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.evaluation.row_log import RowLog, RunError, read_records
from r2_serve.load.records import RequestRecord, TimelineSample
from r2_serve.run_files import put_aside

REQUESTS, TIMELINE, SUMMARY, REPORT = "requests.jsonl", "timeline.jsonl", "summary.json", "report.html"
FREE_SPACE = "free some space and run it again with --set-aside, which keeps what is there"
"""A load is not taken up where it broke off: its queues are gone."""


@dataclass(frozen=True)
class RunLogs:
    """The two files that grow while a run goes."""

    requests: RowLog
    timeline: RowLog


def claim(directory: Path, *, set_aside: bool = False) -> Path | None:
    """Makes `directory`; one that holds a run is renamed where `set_aside` (the new name is given), else refused.

    Raises: ConfigError.
    """
    moved = None
    if any((directory / name).exists() for name in (REQUESTS, SUMMARY)):
        if _is_under_way(directory):
            raise ConfigError(f"{directory} holds a run that is under way: choose another --out, or wait until it has ended")
        if not set_aside:
            raise ConfigError(f"{directory} holds a run already: choose another --out, or keep that one aside with --set-aside")
        moved = put_aside(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{directory} cannot be made ({e.strerror}): choose another --out") from e
    return moved


def _is_under_way(directory: Path) -> bool:
    """Whether its writer still holds its log."""
    try:
        RowLog(directory / REQUESTS).__exit__()
    except RunError:
        return True
    return False


@contextmanager
def logs(directory: Path) -> Iterator[RunLogs]:
    """Raises: RunError where another process writes there, or the disk is full."""
    with _log(directory / REQUESTS) as requests, _log(directory / TIMELINE) as timeline:
        yield RunLogs(requests, timeline)


def _log(path: Path) -> RowLog:
    return RowLog(path, rows_per_sync=1000, advice=FREE_SPACE)


@dataclass(frozen=True)
class RequestFile:
    """The requests of a run in the order in which they ended, read anew each time: a run may be longer than memory."""

    directory: Path

    def __iter__(self) -> Iterator[RequestRecord]:
        """Raises: RunError naming a line that is none."""
        return read_records(self.directory / REQUESTS, RequestRecord)


def read_timeline(directory: Path) -> Iterator[TimelineSample]:
    """In order. Raises: RunError naming a line that is none."""
    return read_records(directory / TIMELINE, TimelineSample)


def rewrite_requests(directory: Path, records: Iterable[RequestRecord]) -> None:
    """In place of those there, all or none."""
    draft = directory / f"{REQUESTS}.tmp"
    with draft.open("wb") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_defaults=True).encode() + b"\n")
    draft.replace(directory / REQUESTS)
