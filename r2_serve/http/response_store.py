"""Responses that clients may go on from, read again and delete: an SQLite database, in memory or in a file.

It is bounded by number, bytes and age, and forgets first what was not used for longest. To go on from a
response uses all the responses before it, so a conversation is forgotten as a whole. A client key sees its
own responses alone.

In memory, a response is known to the router process that made it. In a file it survives restarts, and the
router processes of one machine share it. Routers on several machines share nothing: there, clients send the
whole conversation (`store: false`, as Codex does), or a load balancer keeps each client on one machine.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from r2_serve.config import ResponsesConfig
from r2_serve.dialects.responses import Earlier
from r2_serve.dialects.shapes import as_objects
from r2_serve.errors import ConfigError
from r2_serve.files import open_database
from r2_serve.types import Json

log = logging.getLogger(__name__)
_ENDED = ("completed", "incomplete")
_KEPT = 0.9
"""Share of the limits that is kept when one is passed."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, session TEXT,
    used_s REAL NOT NULL, num_bytes INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, id TEXT, is_output INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (response, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_id ON items (id);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used_s, id, num_bytes);
"""
_ONE = "SELECT session, previous, body FROM responses WHERE id = ? AND owner = ?"
_ITEMS = "SELECT body, is_output FROM items WHERE response = ? ORDER BY position"
_ITEM = """
SELECT items.body FROM items JOIN responses ON responses.id = items.response
WHERE items.id = ? AND owner = ? ORDER BY used_s DESC LIMIT 1
"""
_SURPLUS = """
DELETE FROM responses WHERE used_s < :oldest_s OR id IN (
    SELECT id FROM (
        SELECT id, ROW_NUMBER() OVER newest AS place, SUM(num_bytes) OVER newest AS total FROM responses
        WINDOW newest AS (ORDER BY used_s DESC, id DESC ROWS UNBOUNDED PRECEDING))
    WHERE place > 1 AND (place > :max_count OR total > :max_bytes))
"""


class ResponseStore:
    """A `r2_serve.dialects.responses.Keeper`. `clock` gives wall-clock seconds.

    A failing disk does not fail requests: a response that cannot be written says `store: false`.

    Raises: ConfigError if the file cannot be used.
    """

    def __init__(self, config: ResponsesConfig, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        path = Path(config.file) if config.file else None
        try:
            self._db = open_database(path, _SCHEMA)
        except sqlite3.Error as e:
            raise ConfigError(f"server.responses.file {path} cannot be used: {e}") from e

    def keep(self, owner: str | None, response: Json, items: tuple[Json, ...], session: str | None) -> bool:
        """Keeps a response, or the later state of one that is known."""
        head = {key: value for key, value in response.items() if key != "output"}
        rows = [(False, json.dumps(item), _name(item.get("id"))) for item in items]
        rows += [
            (True, json.dumps(item), _name(item.get("id"))) for item in as_objects(response.get("output"))
        ]
        body = json.dumps(head)
        num_bytes = len(body) + sum(len(text) for _, text, _ in rows)
        if num_bytes > self._config.max_bytes or self._config.max_count == 0:
            return False
        named = (response["id"], owner or "", response.get("previous_response_id"), session)
        try:
            with self._transaction():
                self._db.execute("DELETE FROM responses WHERE id = ?", named[:1])
                place = (*named, self._clock(), num_bytes, body)
                self._db.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", place)
                numbered = [(named[0], i, item, out, text) for i, (out, text, item) in enumerate(rows)]
                self._db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", numbered)
                self._forget()
        except sqlite3.Error as e:
            log.warning("a response cannot be kept: %s", e)
            return False
        return True

    def earlier(self, owner: str | None, response_id: str) -> Earlier | None:
        with self._transaction():
            self._forget()
            chain = self._chain(owner, response_id)
            used = [(self._clock(), turn) for turn, _ in chain or ()]
            self._db.executemany("UPDATE responses SET used_s = ? WHERE id = ?", used)
        last = self.response(owner, response_id)
        if not chain or last is None or last.get("status") not in _ENDED:
            return None
        items = [item for turn, _ in chain for _, item in self._items(turn)]
        return Earlier(tuple(items), chain[-1][1])

    def response(self, owner: str | None, response_id: str) -> Json | None:
        """A response as it was kept; None if it is not known, or another's."""
        row = self._db.execute(_ONE, (_name(response_id), owner or "")).fetchone()
        if row is None:
            return None
        return {
            **_json(row[2]),
            "output": [item for is_output, item in self._items(response_id) if is_output],
        }

    def inputs(self, owner: str | None, response_id: str) -> list[Json] | None:
        """The input of a response with all that came before it; None if it is not known, or another's.

        An item without an id gets one, by which lists are cut into pages.
        """
        chain = self._chain(owner, response_id)
        if not chain:
            return None
        items = [item for turn, _ in chain[:-1] for _, item in self._items(turn)]
        items += [item for is_output, item in self._items(response_id) if not is_output]
        return [{"id": f"item_{position}", **item} for position, item in enumerate(items)]

    def item(self, owner: str | None, item_id: str) -> Json | None:
        row = self._db.execute(_ITEM, (_name(item_id), owner or "")).fetchone()
        return _json(row[0]) if row else None

    def delete(self, owner: str | None, response_id: str) -> bool:
        """Forgets a response; tells whether it was known."""
        place = (_name(response_id), owner or "")
        return self._db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", place).rowcount > 0

    def _chain(self, owner: str | None, response_id: str) -> list[tuple[str, str | None]] | None:
        """Id and session of a response after all those before it; None if one of them is not known."""
        chain, earlier = list[tuple[str, str | None]](), response_id
        while earlier is not None:
            row = self._db.execute(_ONE, (_name(earlier), owner or "")).fetchone()
            if row is None:
                return None
            chain.append((earlier, row[0]))
            earlier = row[1]
        return chain[::-1]

    def _items(self, response_id: object) -> Iterator[tuple[bool, Json]]:
        """The items of one response, each with whether it is output."""
        for body, is_output in self._db.execute(_ITEMS, (response_id,)).fetchall():
            yield bool(is_output), _json(body)

    def _forget(self) -> None:
        """Deletes what is too old, and if there is too much, a tenth more: the search is slow."""
        config, oldest_s = self._config, self._clock() - self._config.max_age_s
        total = "SELECT COUNT(*), SUM(num_bytes), MIN(used_s) FROM responses"
        ((count, num_bytes, first_s),) = self._db.execute(total).fetchall()
        if count > config.max_count or (num_bytes or 0) > config.max_bytes:
            kept = {"max_count": config.max_count * _KEPT, "max_bytes": config.max_bytes * _KEPT}
            self._db.execute(_SURPLUS, {**kept, "oldest_s": oldest_s})
        elif count and first_s < oldest_s:
            self._db.execute("DELETE FROM responses WHERE used_s < ?", (oldest_s,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _name(value: object) -> str | None:
    """An id as the database holds it: valid Unicode, or nothing if a client sent no text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _json(text: object) -> Json:
    value = json.loads(str(text))
    assert isinstance(value, dict)
    return value
