"""The time limit of one call. The time that the consumer of a stream takes does not count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from r2_serve.errors import EngineTimeout


class Deadline:
    """The time at which a call must have ended: `timeout_s` from now, plus the pauses."""

    def __init__(self, timeout_s: float | None) -> None:
        self.at: float | None = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        """Time of the event loop's clock; None for no limit."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Moves the deadline by the time inside the block: put it around the `yield` of a stream."""
        clock = asyncio.get_running_loop().time
        began = clock()
        yield
        if self.at is not None:
            self.at += clock() - began


@asynccontextmanager
async def bounded(until: float | None) -> AsyncIterator[None]:
    """Ends the block at the event loop's time `until`. Do not `yield` inside: it would cancel the consumer.

    Raises: EngineTimeout at that time.
    """
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as e:
        raise EngineTimeout("the model did not answer in time") from e


@contextmanager
def paused(limit: asyncio.Timeout) -> Iterator[None]:
    """Moves `limit` by the time inside the block."""
    clock = asyncio.get_running_loop().time
    until, began = limit.when(), clock()
    limit.reschedule(None)
    yield
    limit.reschedule(None if until is None else until + clock() - began)
