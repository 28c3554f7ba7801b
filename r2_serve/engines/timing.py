"""The limit of one call: `timeout_s` becomes a deadline once, and every wait is bounded by it. A consumer's time is not the model's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from r2_serve.errors import EngineTimeout


class Deadline:
    """When a call must have ended: `timeout_s` from now, and later by what the consumer of a stream holds it up."""

    def __init__(self, timeout_s: float | None) -> None:
        self.at: float | None = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        """On the event loop's clock; None is no limit."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around the `yield` of a stream."""
        clock = asyncio.get_running_loop().time
        began = clock()
        yield
        if self.at is not None:
            self.at += clock() - began


@asynccontextmanager
async def bounded(until: float | None) -> AsyncIterator[None]:
    """Ends the block at the event loop's time `until`. Never `yield` from an async generator inside it: it would cancel the consumer.

    Raises: EngineTimeout then.
    """
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as e:
        raise EngineTimeout("the model did not answer in time") from e


@contextmanager
def paused(limit: asyncio.Timeout) -> Iterator[None]:
    """The time inside does not count against `limit`."""
    clock = asyncio.get_running_loop().time
    until, began = limit.when(), clock()
    limit.reschedule(None)
    yield
    limit.reschedule(None if until is None else until + clock() - began)
