"""Cancelling an HTTP call without leaving half-closed connections behind.

The HTTP library (httpcore2) closes connections under anyio's shields. Those hold against anyio's own cancellation, not against
`Task.cancel`, on which `asyncio.timeout` and a client's leaving rest: one that falls into the closing cuts it short, and the
library's pool keeps the request, and its connection, for as long as the process lives. So the library's coroutines run in a
task of their own, which is cancelled through anyio alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def cancelled_gently(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`. Cancelled meanwhile, it cancels `work` in anyio's way and waits until that has cleaned up.

    What `work` came to in that very moment is lost: whoever opens something with it closes it in a `finally`.
    """
    scope = anyio.CancelScope()

    async def scoped() -> T:
        with scope:
            return await work
        raise asyncio.CancelledError

    task = asyncio.create_task(scoped())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        scope.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it
        raise
    return task.result()
