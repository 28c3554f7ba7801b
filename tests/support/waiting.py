"""Waiting for what tells nobody that it has come: asked every millisecond, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 60.0
"""Of a test on a starved machine. Nothing here measures how fast anything is."""


async def until(is_so: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Raises: TimeoutError."""
    async with asyncio.timeout(patience_s):
        while True:
            holds = is_so()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.001)
