"""An event loop whose clock jumps to the next timer instead of waiting, so delays are exact and cost no time.

`run` is for work within the process; `run_with_sockets` lets bytes arrive before the clock jumps.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class _QuietSelector(selectors.DefaultSelector):
    """Jumps after `QUIET_S` of real time without events: bytes sent on loopback have arrived by then."""

    QUIET_S, PATIENCE_S = 0.05, 30.0
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        ready = super().select(self.PATIENCE_S if timeout is None else self.QUIET_S)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        if not ready:
            self.now_s += timeout or 0.0
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self, jumping: _JumpingSelector | _QuietSelector | None = None) -> None:
        self._jumping = jumping or _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def pass_time(self, seconds: float) -> None:
        """Let time pass while no timer fires, as if the process were busy."""
        self._jumping.now_s += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time, which starts at 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def run_with_sockets(main: Coroutine[Any, Any, T]) -> T:
    """Like `run`, for work over loopback sockets. Each jump costs `_QuietSelector.QUIET_S`."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(_QuietSelector())) as runner:
        return runner.run(main)


def now_s() -> float:
    """Virtual seconds since the start of `run`."""
    return asyncio.get_running_loop().time()


async def turns(count: int = 8) -> None:
    """Let everything run that can run without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)
