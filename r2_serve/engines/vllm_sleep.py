"""Puts an idle vLLM to sleep: its weights go to the host's memory and its KV cache is dropped.

It is an alternative to `min_replicas: 0` where the GPU is shared: the replica stays, so that its next call
waits for the weights alone, and not for a start of vLLM. Source: vLLM 0.29, `AsyncLLM.sleep`, level 1.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

_log = logging.getLogger(__name__)
LEVEL = 1
"""Level 2 would drop the weights too, and fetch them from disk again."""


class Sleeper(Protocol):
    """The part of AsyncLLM that is used."""

    async def sleep(self, level: int = 1) -> None: ...

    async def wake_up(self) -> None: ...


class Sleep:
    """The sleep of one engine after `after_s` seconds without a call; None never."""

    def __init__(self, engine: Sleeper, after_s: float | None) -> None:
        self._engine, self._after_s = engine, after_s
        self._num_calls = 0
        self._is_asleep = False
        self._changing = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Wakes the engine, and keeps it awake inside."""
        if self._after_s is None:
            yield
            return
        self._num_calls += 1
        self.stop()
        try:
            await self._wake()
            yield
        finally:
            self._num_calls -= 1
            if self._num_calls == 0:
                self._waiting = asyncio.create_task(self._sleep_later(self._after_s))

    def stop(self) -> None:
        """Ends the wait for the next sleep."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    async def _wake(self) -> None:
        async with self._changing:
            if self._is_asleep:
                await self._engine.wake_up()
                self._is_asleep = False
                _log.info("vLLM is awake")

    async def _sleep_later(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await asyncio.shield(asyncio.create_task(self._sleep()))  # a call that comes now waits for it

    async def _sleep(self) -> None:
        async with self._changing:
            if self._num_calls == 0:
                await self._engine.sleep(LEVEL)
                self._is_asleep = True
                _log.info("vLLM sleeps until the next call")
