"""A cache of model calls by their content, so that a stage can run again for free. It also counts what calls
cost.

The key of a call holds all that decides its reply: the model's identity (its engine's configuration and, for
a checkpoint on this machine, its weights), the messages, the sampling and the adapter. One SQLite file per
run directory holds the replies. A failed call is not kept, because it may succeed next time. Two equal calls
at the same time are made once.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Self

from r2_serve.calls.pool import EngineFor
from r2_serve.config import ModelConfig, ModelServerConfig
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.files import write_whole
from r2_serve.lab.evaluation.identity import call_key, identity_of
from r2_serve.types import Completion, Delta, Engine, EngineCall

COMMIT_EVERY = 500
"""Number of replies between two commits. A killed run may lose so many, and asks for them again."""
LOCK_TIMEOUT_S = 1.0
SECONDS_PER_LOOK = 1.0
SPENT = ".spent"
"""End of the name of the file that says what one cache has spent, in USD."""


class SpendLimitReached(EngineRefused):
    """The run has spent its `max_cost_usd`, so no further call is made. The router takes it for an ordinary
    refusal."""


@dataclass
class CallCache:
    """Replies by key, in memory and in the file `path`. Spend counts the calls that were made, in earlier
    runs too, and by the other caches of the same directory: each rank of a stage has its own."""

    path: Path
    max_cost_usd: Decimal | None = None
    num_hits: int = 0
    num_calls: int = 0
    _replies: dict[str, Completion] = field(default_factory=dict, repr=False)
    _under_way: dict[str, asyncio.Task[Completion]] = field(default_factory=dict, repr=False)
    _refusal: SpendLimitReached | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # TRL computes rewards on a thread of its own.
        self._db = sqlite3.connect(self.path, check_same_thread=False, timeout=LOCK_TIMEOUT_S)
        self._lock()
        self._db.execute(
            "create table if not exists calls "
            "(key text primary key, reply text not null, cost_usd text not null)"
        )
        rows = self._db.execute("select key, reply, cost_usd from calls").fetchall()
        self._replies.update((key, Completion.model_validate_json(reply)) for key, reply, _ in rows)
        self._spend = SharedSpend(self.path, sum((Decimal(cost) for _, _, cost in rows), Decimal(0)))
        return self

    @property
    def spent_usd(self) -> Decimal:
        """Cost of all calls of the directory, those of the other ranks as of about a second ago."""
        return self._spend.total_usd()

    def _lock(self) -> None:
        """Locks the file until it is closed. Raises: ConfigError if another process holds it."""
        self._db.execute("pragma locking_mode = exclusive")
        try:
            self._db.execute("begin exclusive")
            self._db.commit()
        except sqlite3.OperationalError as e:
            self._db.close()
            raise ConfigError(
                f"another process uses {self.path}: wait for it, or choose another --out"
            ) from e

    def __exit__(self, *_: object) -> None:
        self._spend.write()
        self._db.commit()
        self._db.close()

    async def completed(
        self, key: str, model: ModelConfig, call: Callable[[], asyncio.Task[Completion]]
    ) -> Completion:
        """The kept reply, or else the reply of `call`. Raises: SpendLimitReached; the error of the call."""
        if key in self._replies:
            self.num_hits += 1
            return self._replies[key]
        if key in self._under_way:
            self.num_hits += 1
            return await asyncio.shield(self._under_way[key])
        if self.max_cost_usd is not None and self.spent_usd >= self.max_cost_usd:
            self._refusal = SpendLimitReached(
                f"the run has spent {self.spent_usd:f} USD of max_cost_usd {self.max_cost_usd:f}: "
                "raise the limit to continue"
            )
            raise self._refusal
        task = self._under_way[key] = call()
        try:
            reply = await task
        finally:
            del self._under_way[key]
        self._keep(key, reply, model.cost_usd(reply.usage))
        return reply

    def check_spend(self) -> None:
        """Raises SpendLimitReached if a call was refused for it, so that such a refusal never counts as a
        result."""
        if self._refusal is not None:
            raise self._refusal

    def _keep(self, key: str, reply: Completion, cost_usd: Decimal) -> None:
        self._replies[key] = reply
        self._spend.add(cost_usd)
        self.num_calls += 1
        self._db.execute(
            "insert or replace into calls values (?, ?, ?)", (key, reply.model_dump_json(), f"{cost_usd:f}")
        )
        if self.num_calls % COMMIT_EVERY == 0:
            self._db.commit()


@dataclass
class SharedSpend:
    """What the caches of one directory have spent. Each tells the others by a small file next to its own.

    Calls of other ranks are seen after about `SECONDS_PER_LOOK`, so a limit may be passed by what the ranks
    spend in that time, and by the calls in flight.
    """

    path: Path
    own_usd: Decimal
    _others_usd: Decimal = Decimal(0)
    _looked_s: float = -math.inf

    def __post_init__(self) -> None:
        self.write()

    def add(self, cost_usd: Decimal) -> None:
        self.own_usd += cost_usd
        self._look()

    def total_usd(self) -> Decimal:
        self._look()
        return self.own_usd + self._others_usd

    def write(self) -> None:
        write_whole(self._file, f"{self.own_usd:f}")

    @property
    def _file(self) -> Path:
        return self.path.with_suffix(SPENT)

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < SECONDS_PER_LOOK:
            return
        self._looked_s = now_s
        self.write()
        others = (file for file in self.path.parent.glob(f"*{SPENT}") if file != self._file)
        self._others_usd = sum((Decimal(file.read_text()) for file in others), Decimal(0))


@dataclass(frozen=True)
class CachedEngine:
    """An engine behind a cache. Streams are not cached, because training asks for none."""

    engine: Engine
    model: ModelConfig
    identity: str
    cache: CallCache

    async def generate(self, call: EngineCall) -> Completion:
        key = call_key(self.identity, call)

        def asked() -> asyncio.Task[Completion]:
            return asyncio.ensure_future(self.engine.generate(call))

        return await self.cache.completed(key, self.model, asked)

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        return self.engine.stream(call)

    async def aclose(self) -> None:
        """Ends the engine, if it is one that can be ended; a handle to a deployment is not."""
        if (close := getattr(self.engine, "aclose", None)) is not None:
            await close()


def cached_engines(
    engine_for: EngineFor, apps: Mapping[str, ModelServerConfig], cache: CallCache
) -> EngineFor:
    """`engine_for` with every engine behind `cache`."""

    def cached(model: ModelConfig) -> Engine:
        return CachedEngine(engine_for(model), model, identity_of(model, apps), cache)

    return cached
