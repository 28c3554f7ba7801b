"""Waits for states that send no event: they are polled every millisecond, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 60.0
"""Longest wait in a test, for a starved machine. No test measures speed with it."""


async def until(is_so: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Raises: TimeoutError."""
    async with asyncio.timeout(patience_s):
        while True:
            holds = is_so()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.001)
