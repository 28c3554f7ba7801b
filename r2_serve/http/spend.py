"""What each client key has spent, and the purse from which its requests pay.

A purse holds back the most that each call in flight can cost, so that requests at once cannot overspend a
budget within one router process. Settled spend is kept in an SQLite file if one is configured: it survives
restarts, and the router processes of one machine share it. They do not see each other's calls in flight, so
together they may overspend a budget by the cost of those calls.
"""

from __future__ import annotations

import datetime
import logging
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from r2_serve.calls.budget import Purse
from r2_serve.config import RolloutConfig, ServerConfig
from r2_serve.errors import ConfigError, QuotaExceeded
from r2_serve.files import open_database
from r2_serve.http.keys import ClientKey
from r2_serve.router.trials import PurseFor, ShadowPurse

log = logging.getLogger(__name__)
_SCHEMA = """CREATE TABLE IF NOT EXISTS spend
    (name TEXT, period TEXT, usd TEXT NOT NULL, PRIMARY KEY (name, period)) WITHOUT ROWID"""
_READ = "SELECT usd FROM spend WHERE name = ? AND period = ?"
_WRITE = "INSERT INTO spend VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET usd = excluded.usd"


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class SpendBook:
    """Exact settled spend by key and period; in memory if `path` is None.

    A failing disk does not fail requests: spend that could not be written counts here and is written with the
    next one.

    Raises: ConfigError if the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._unwritten: dict[tuple[str, str], Decimal] = {}
        self._last_read: dict[tuple[str, str], Decimal] = {}
        try:
            self._db = open_database(path, _SCHEMA)
        except sqlite3.Error as e:
            raise ConfigError(f"server.spend_file {path} cannot be used as the book of spend: {e}") from e

    def spent_usd(self, name: str, period: str) -> Decimal:
        place = (name, period)
        try:
            self._last_read[place] = self._read(place)
        except sqlite3.Error as e:
            log.warning("the spend file cannot be read, so the last reading counts: %s", e)
        return self._last_read.get(place, Decimal(0)) + self._unwritten.get(place, Decimal(0))

    def add(self, name: str, period: str, usd: Decimal) -> None:
        place = (name, period)
        self._unwritten[place] = waiting_usd = self._unwritten.get(place, Decimal(0)) + usd
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute(_WRITE, (*place, str(self._read(place) + waiting_usd)))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            del self._unwritten[place]
        except sqlite3.Error as e:
            log.warning("the spend file cannot be written, %s USD of %s wait: %s", waiting_usd, name, e)

    def _read(self, place: tuple[str, str]) -> Decimal:
        row = self._db.execute(_READ, place).fetchone()
        return Decimal(row[0]) if row else Decimal(0)


class KeyPurse:
    """The purse of one key: a `r2_serve.calls.ledger.Purse`."""

    def __init__(self, key: ClientKey, book: SpendBook, today: Callable[[], datetime.date]) -> None:
        self.key = key
        self._book, self._today = book, today
        self._held_usd = Decimal(0)

    def left_usd(self) -> Decimal | None:
        """The most that a new call may cost; None without a budget."""
        if self.key.budget_usd is None:
            return None
        return self.key.budget_usd - self.spent_usd() - self._held_usd

    def spent_usd(self) -> Decimal:
        """Settled spend of the current period."""
        return self._book.spent_usd(self.key.name, self._period())

    def hold(self, usd: Decimal) -> None:
        self._held_usd += usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self._held_usd -= held_usd
        if spent_usd:
            self._book.add(self.key.name, self._period(), spent_usd)

    def refusal(self) -> QuotaExceeded:
        budget, period = self.key.budget_usd, self.key.budget_period
        resets_at = self.resets_at()
        when = "" if resets_at is None else f" per {period}, until {resets_at.isoformat()} 00:00 UTC"
        left = max(self.left_usd() or Decimal(0), Decimal(0))
        return QuotaExceeded(
            f"key {self.key.name!r} has a budget of {budget:f} USD{when}, of which {left:f} are left, "
            "less than the next call may cost; ask the operator for more, or lower max_tokens"
        )

    def resets_at(self) -> datetime.date | None:
        """The day on which the budget is full again, in UTC; None if that never happens."""
        today, next_day = self._today(), datetime.timedelta(days=1)
        match self.key.budget_period if self.key.budget_usd is not None else "total":
            case "day":
                return today + next_day
            case "month":
                return (today.replace(day=28) + 4 * next_day).replace(day=1)
        return None

    def _period(self) -> str:
        day = self._today().isoformat()
        return {"total": "", "month": day[:7], "day": day}[self.key.budget_period]


class BookedShadowPurse(ShadowPurse):
    """The budget of a candidate's shadows, in the book that all routers of a machine share."""

    def __init__(self, name: str, budget_usd: Decimal, book: SpendBook) -> None:
        super().__init__(budget_usd)
        self._name, self._book = name, book

    def spent_usd(self) -> Decimal:
        return self._book.spent_usd(self._name, "")

    def spend(self, usd: Decimal) -> None:
        self._book.add(self._name, "", usd)


def shadow_purses(server: ServerConfig) -> PurseFor:
    """The purses of shadows. No key has a name with blanks, so the book keeps them apart from keys.

    Raises: ConfigError if the spend file cannot be used.
    """
    book = SpendBook(Path(server.spend_file) if server.spend_file else None)

    def purse(model: str, rollout: RolloutConfig) -> Purse:
        return BookedShadowPurse(f"shadows of {rollout.candidate} for {model}", rollout.budget_usd, book)

    return purse


class Purses:
    """One purse for each key name, made at its first use."""

    def __init__(self, book: SpendBook, today: Callable[[], datetime.date] = _today) -> None:
        self._book, self._today = book, today
        self._purses: dict[str, KeyPurse] = {}

    def of(self, key: ClientKey) -> KeyPurse:
        """The purse of `key`, with the key's limits as they are now."""
        purse = self._purses.setdefault(key.name, KeyPurse(key, self._book, self._today))
        purse.key = key
        return purse

    def spent_usd(self) -> dict[str, Decimal]:
        """Spend in the current period by name, of every key seen so far."""
        return {name: purse.spent_usd() for name, purse in self._purses.items()}
