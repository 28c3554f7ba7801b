"""The wall-clock limit of one call: `timeout_s` becomes a deadline once, and every wait is bounded by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from r2_serve.errors import EngineTimeout


def deadline_after(timeout_s: float | None) -> float | None:
    """The event loop's time `timeout_s` from now; None is no limit."""
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s


@asynccontextmanager
async def bounded(deadline: float | None) -> AsyncIterator[None]:
    """Ends the block at `deadline`. Never `yield` from an async generator inside it: it would cancel the consumer.

    Raises: EngineTimeout at the deadline.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as e:
        raise EngineTimeout("the model did not answer in time") from e
