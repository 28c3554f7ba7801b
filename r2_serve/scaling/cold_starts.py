"""Cold starts in parts: a line in the log of each replica, which experiments collect, and which the policy
and the simulator read.

The parts follow one another: the node boots, its image is fetched and Ray starts, the replica's process
starts, weights are fetched to the node, the engine loads them and warms up. A node that was up before takes
none of the first two. The time of the first call up to its first token (to the whole reply, if that was not
streamed) is known later, so the line comes again with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.types import Record

MARK = "cold start:"
PARTS = ("node_s", "image_s", "process_s", "weights_s", "engine_s", "first_token_s")
USUAL = 0.75
"""The share of starts that are as quick as the usual one: a lead that is too short costs waits, one that is
too long costs idle replicas."""
_LINE = re.compile(rf"{MARK} app=(\S+) replica=(\S+) " + " ".join(rf"{part}=([\d.]+|-)" for part in PARTS))


class ColdStart(Record):
    """One start of a replica, in seconds."""

    app: str
    replica: str
    node_s: float = 0.0
    image_s: float = 0.0
    process_s: float = 0.0
    weights_s: float = 0.0
    engine_s: float = 0.0
    first_token_s: float | None = None
    """None until the first call."""

    @property
    def on_node_s(self) -> float:
        """Time from asking for the replica until it serves, on a node that is up."""
        return self.process_s + self.weights_s + self.engine_s

    def line(self) -> str:
        """The line for the log."""
        values = (getattr(self, part) for part in PARTS)
        texts = ("-" if value is None else f"{value:.3f}" for value in values)
        parts = " ".join(f"{part}={text}" for part, text in zip(PARTS, texts, strict=True))
        return f"{MARK} app={self.app} replica={self.replica} {parts}"


@dataclass(frozen=True)
class Moments:
    """Times of a start in seconds since the epoch."""

    asked_at: float
    """Serve's controller asked for the replica."""
    host_up_at: float
    """The kernel of the node started."""
    ray_up_at: float
    """Ray started on the node."""
    begun_at: float
    """The replica's constructor began."""
    ready_at: float
    """The engine was ready."""
    fetched_s: float = 0.0
    """Seconds of the constructor in which weights were fetched."""

    def parts(self, app: str, replica: str) -> ColdStart:
        """The start in parts; what was over before the replica was asked for takes no time."""
        reached_at, took_s = self.asked_at, []
        for at in (self.host_up_at, self.ray_up_at, self.begun_at, self.ready_at):
            took_s.append(max(0.0, at - reached_at))
            reached_at = max(reached_at, at)
        node_s, image_s, process_s, load_s = took_s
        fetched_s = min(self.fetched_s, load_s)
        return ColdStart(
            app=app,
            replica=replica,
            node_s=node_s,
            image_s=image_s,
            process_s=process_s,
            weights_s=fetched_s,
            engine_s=load_s - fetched_s,
        )


def starts_in(lines: Iterable[str]) -> list[ColdStart]:
    """The starts in lines of logs, text or JSON; of two lines of one replica the later one counts."""
    found = {start.replica: start for start in map(_parsed, lines) if start is not None}
    return list(found.values())


def read_starts(path: Path) -> list[ColdStart]:
    """The starts in a file, or in all `*.log` files below a directory. Raises: ConfigError if it has none."""
    files = sorted(path.rglob("*.log")) if path.is_dir() else [path]
    try:
        starts = starts_in(line for file in files for line in _lines(file))
    except OSError as e:
        raise ConfigError(f"cold starts cannot be read from {path}: {e.strerror or e}") from e
    if not starts:
        raise ConfigError(
            f"{path} has no line with `{MARK}`, which each replica of a model logs as it starts"
        )
    return starts


def usual_start_s(starts: Sequence[ColdStart], app: str) -> float:
    """The time in which three of four replicas of `app` started on a node that was up.

    Raises: ConfigError if none of `starts` is one of `app`.
    """
    times = sorted(start.on_node_s for start in starts if start.app == app)
    if not times:
        known = sorted({start.app for start in starts})
        raise ConfigError(f"there is no cold start of application {app!r}, only of {known}")
    return times[min(int(len(times) * USUAL), len(times) - 1)]


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from lines


def _parsed(line: str) -> ColdStart | None:
    if (found := _LINE.search(line)) is None:
        return None
    app, replica, *texts = found.groups()
    values = {part: float(text) for part, text in zip(PARTS, texts, strict=True) if text != "-"}
    return ColdStart(app=app, replica=replica, **values)
