"""A bounded first-come queue in front of the work. No HTTP here."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from r2_serve.errors import DeadlineExceeded, Overloaded, Stopping

MAX_RETRY_AFTER_S = 60
STOPPING_RETRY_AFTER_S = 5.0
_WEIGHT_OF_LAST = 0.1


class Admission:
    """At most `max_running` at work and `max_queued` waiting, first come first served; more are refused at once."""

    def __init__(
        self, max_running: int, max_queued: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_running = 0
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._max_running, self._max_queued, self._clock = max_running, max_queued, clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_service_s = 1.0

    @property
    def num_queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, deadline_s: float | None = None) -> AsyncIterator[float]:
        """Holds a place at work; gives the seconds spent waiting for it. A cancelled waiter leaves the queue.

        Raises: Overloaded where the queue is full; Stopping after `close`; DeadlineExceeded where `deadline_s` passed in it.
        """
        arrived_s = self._clock()
        await self._enter(deadline_s)
        started_s = self._clock()
        try:
            yield started_s - arrived_s
        finally:
            self._mean_service_s += _WEIGHT_OF_LAST * (self._clock() - started_s - self._mean_service_s)
            self._leave()

    def close(self) -> None:
        """Refuses whoever comes from now on; those at work or in the queue are served to their end."""
        self._is_closed = True

    async def idle(self) -> None:
        """Returns when nobody is at work nor waits."""
        await self._idle.wait()

    async def _enter(self, deadline_s: float | None) -> None:
        if self._is_closed:
            raise Stopping(
                "the server is stopping and takes no new requests: ask again when it is back",
                STOPPING_RETRY_AFTER_S,
            )
        if self.num_running < self._max_running:
            self.num_running += 1
            self._idle.clear()
            return
        if len(self._waiting) >= self._max_queued:
            raise Overloaded(
                f"{self.num_running} requests are at work and {self.num_queued} wait: try again later",
                self._retry_after_s(),
            )
        try:
            async with asyncio.timeout(deadline_s):
                await self._turn()
        except TimeoutError as e:
            raise DeadlineExceeded(
                f"the deadline of {deadline_s:g} s passed while the request waited in the queue"
            ) from e

    async def _turn(self) -> None:
        """Waits until a leaver hands its place over."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._leave()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _leave(self) -> None:
        """Gives this place to the first in the queue, or frees it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.num_running -= 1
        if self.num_running == 0:
            self._idle.set()

    def _retry_after_s(self) -> float:
        """When the queue, at the mean service time so far, should have a place again."""
        return min(
            MAX_RETRY_AFTER_S, math.ceil(self._mean_service_s * (self.num_queued + 1) / self._max_running)
        )
