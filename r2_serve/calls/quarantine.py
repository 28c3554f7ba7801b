"""Calls whose replica died are tried again one at a time, so that the one that kills replicas takes no other down with it twice.

When a replica dies with twenty calls in flight, one of them may have killed it; which one, nobody can say. Let
loose together they would all be in flight again at the second death, and all would look guilty. A turn is waited for no longer
than `PATIENCE_S`: an honest crash (a node lost) should cost its calls a delay, not their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_DEATHS = 2
"""Replicas that one call may take with it; it is not sent to a third."""
PATIENCE_S = 30.0
"""A new replica of a small model is up by then; larger ones have several replicas."""


class Quarantine:
    """Of one model, in one process."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The block, alone among suspects where that is possible in time."""
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
