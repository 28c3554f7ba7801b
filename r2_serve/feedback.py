"""The scores that clients give to answers: an SQLite database, in memory or in a file.

Every answered query is noted with the name of its client's key, so that a client can rate its own queries
alone. A query is known by the id of its reply, with or without the prefix of a dialect, or by its request id;
of several with one request id the latest counts. It is bounded by number and age: the oldest queries go
first, with their scores. `r2-serve outcomes import traces` joins the scores with the traces.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r2_serve.config import FEEDBACK_FILE, ServerConfig
from r2_serve.errors import ConfigError, FeedbackLost, InvalidRequest, QueryNotFound, counted
from r2_serve.files import open_database
from r2_serve.types import Arm, Record, Trace

log = logging.getLogger(__name__)
ScoreSource = Literal["user", "check"]
"""Who judged an answer: a person, or a program such as a test or a grader."""
PREFIXES = ("chatcmpl-", "cmpl-", "msg_", "resp_")
"""What the dialects put before the id of a reply."""
NUM_SPARED = 0.9
"""The share of `max_count` that is kept when the number is passed, so that not every query deletes one."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS queries (
    task TEXT PRIMARY KEY, request TEXT NOT NULL, client TEXT NOT NULL, num_steps INTEGER NOT NULL,
    model TEXT NOT NULL, candidate TEXT, arm TEXT, at_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS queries_by_request ON queries (request);
CREATE INDEX IF NOT EXISTS queries_by_age ON queries (at_s);
CREATE TABLE IF NOT EXISTS scores (
    task TEXT NOT NULL REFERENCES queries (task) ON DELETE CASCADE,
    step INTEGER NOT NULL, source TEXT NOT NULL, score REAL NOT NULL, comment TEXT,
    PRIMARY KEY (task, step, source)) WITHOUT ROWID;
"""
_FIND = """
SELECT task, num_steps, model, candidate, arm FROM queries
WHERE client = ? AND (task = ? OR request = ?) ORDER BY at_s DESC LIMIT 1
"""
_RATE = """
INSERT INTO scores VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET score = excluded.score, comment = excluded.comment
"""


class Rating(Record):
    """What a client says of one answer, or of one step of its plan."""

    request_id: str
    """The id of the reply in any dialect, or the request id."""
    score: float
    """1 is right, 0 is wrong."""
    comment: str | None = None
    step: int | None = None
    """The step of the plan; None for the whole answer."""
    source: ScoreSource = "user"


class Rated(Record):
    """A rating that was taken, and the query that it belongs to."""

    rating: Rating
    task: str
    """The name of the query (`Trace.task`)."""
    model: str
    candidate: str | None
    arm: Arm | None
    """The router that answered, while a candidate was on trial."""
    before: float | None
    """The score that this one replaces; None if it is the first."""


@dataclass(frozen=True)
class Score:
    """A score as it stands in the database."""

    task: str
    step: int | None
    source: ScoreSource
    score: float
    comment: str | None


class FeedbackStore:
    """The queries that may be rated, and their scores. `clock` gives wall-clock seconds.

    A failing disk fails no query: a query that cannot be noted cannot be rated.

    Raises: ConfigError if the file cannot be used.
    """

    def __init__(self, server: ServerConfig, clock: Callable[[], float] = time.time) -> None:
        self._config, self._keeps_texts, self._clock = server.feedback, server.trace_texts, clock
        path = Path(server.feedback_file) if server.feedback_file else None
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = open_database(path, _SCHEMA)
            if path is not None:
                path.chmod(0o600)
        except (sqlite3.Error, OSError) as e:
            raise ConfigError(f"server.feedback.file {path} cannot be used: {e}") from e
        ((self._count,),) = self._db.execute("SELECT COUNT(*) FROM queries").fetchall()

    def note(self, trace: Trace) -> None:
        """A query was answered and may be rated from now on. It is a sink of traces."""
        rollout = trace.rollout
        if trace.error is not None or (rollout is not None and rollout.arm == "shadow"):
            return
        arm = (rollout.candidate, rollout.arm) if rollout else (None, None)
        row = (trace.task, trace.request_id, trace.client, len(trace.results), trace.model, *arm)
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO queries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, self._clock())
            )
            self._count += 1
            self._forget()
        except sqlite3.Error as e:
            log.warning("query %s cannot be rated, as it cannot be noted: %s", trace.request_id, e)

    def rate(self, client: str, rating: Rating) -> Rated:
        """Take a rating of the client's own query; the same one again changes nothing.

        Raises: QueryNotFound; InvalidRequest if the plan has no such step; FeedbackLost if the disk fails.
        """
        try:
            return self._rate(client, rating)
        except sqlite3.Error as e:
            log.warning("feedback cannot be written: %s", e)
            raise FeedbackLost("the feedback cannot be written at present: send it again later") from e

    def _rate(self, client: str, rating: Rating) -> Rated:
        asked = rating.request_id.encode(errors="replace").decode()
        row = self._db.execute(_FIND, (client, bare_id(asked), asked)).fetchone()
        if row is None:
            raise QueryNotFound(_UNKNOWN.format(asked[:100]), "request_id")
        task, num_steps, model, candidate, arm = row
        if rating.step is not None and rating.step > num_steps:
            raise InvalidRequest(
                f"step: got {rating.step}, and the plan has {counted(num_steps, 'step')}", "step"
            )
        place = (task, rating.step or 0, rating.source)
        before = self._db.execute(
            "SELECT score FROM scores WHERE task = ? AND step = ? AND source = ?", place
        ).fetchone()
        comment = rating.comment if self._keeps_texts else None
        self._db.execute(_RATE, (*place, rating.score, comment))
        return Rated(
            rating=rating,
            task=task,
            model=model,
            candidate=candidate,
            arm=arm,
            before=before[0] if before else None,
        )

    def _forget(self) -> None:
        """Deletes queries that are too old, or too many."""
        self._db.execute("DELETE FROM queries WHERE at_s < ?", (self._clock() - self._config.max_age_s,))
        if self._count <= self._config.max_count:
            return
        ((self._count,),) = self._db.execute("SELECT COUNT(*) FROM queries").fetchall()
        surplus = self._count - int(self._config.max_count * NUM_SPARED)
        if self._count > self._config.max_count:
            oldest = "DELETE FROM queries WHERE task IN (SELECT task FROM queries ORDER BY at_s LIMIT ?)"
            self._db.execute(oldest, (surplus,))
            self._count -= surplus


_UNKNOWN = (
    "no answered query {!r} of this key is known: send the id of the reply or its x-request-id; a query is "
    "known to the routers of one machine, once its answer has ended, until it is too old"
)


def bare_id(reply_id: str) -> str:
    """The id of a reply without the prefix of its dialect."""
    return next((reply_id.removeprefix(p) for p in PREFIXES if reply_id.startswith(p)), reply_id)


def counting(scores: Iterable[Score]) -> dict[tuple[str, int | None], Score]:
    """The score that counts for each task and step: a program's rather than a person's."""
    ranked = sorted(scores, key=lambda score: score.source == "check")
    return {(score.task, score.step): score for score in ranked}


def scores_beside(traces: Path) -> Path | None:
    """The database that routers keep in their directory of traces, if there is one."""
    file = (traces if traces.is_dir() else traces.parent) / FEEDBACK_FILE
    return file if file.is_file() else None


def read_scores(path: Path) -> Iterable[Score]:
    """All scores of a database. Raises: ConfigError if it cannot be read."""
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        rows = database.execute("SELECT task, step, source, score, comment FROM scores").fetchall()
        database.close()
    except sqlite3.Error as e:
        raise ConfigError(f"{path} holds no feedback: {e}") from e
    return [Score(task, step or None, source, score, comment) for task, step, source, score, comment in rows]
