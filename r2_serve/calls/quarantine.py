"""Calls whose replica died are tried again one at a time, so that a deadly call takes no other with it twice.

When a replica dies with twenty calls in progress, one of them may have killed it, and it is not known which.
If all were sent again together, all would be in progress at the second death and look guilty. A call waits
for its turn no longer than `PATIENCE_S`: the crash of a node should cost its calls a delay, not their
deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_DEATHS = 2
"""Replicas that may die while they work on a call; it is not sent to another."""
PATIENCE_S = 30.0
"""Longest wait for a turn. A new replica of a small model is up by then."""


class Quarantine:
    """The turns of one model's suspect calls, in one process."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Runs the block alone among the suspects, if its turn comes in time."""
        is_alone = False
        try:
            async with asyncio.timeout(self._patience_s):
                await self._lock.acquire()
                is_alone = True
        except TimeoutError:
            pass
        try:
            yield
        finally:
            if is_alone:
                self._lock.release()
