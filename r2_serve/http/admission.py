"""A bounded first-come queue in front of the work. It knows nothing of HTTP."""

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
"""Weight of the newest service time in the running mean."""


class Admission:
    """Lets `max_running` requests work and `max_queued` wait in order of arrival; it refuses the others."""

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

        Raises: Overloaded if the queue is full; Stopping after `close`; DeadlineExceeded after `deadline_s`.
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
        """Refuses new requests; those at work or in the queue are served to their end."""
        self._is_closed = True

    async def idle(self) -> None:
        """Returns when no request is at work or waiting."""
        await self._idle.wait()

    async def _enter(self, deadline_s: float | None) -> None:
        if self._is_closed:
            message = "the server is stopping and takes no new requests: ask again when it is back"
            raise Stopping(message, STOPPING_RETRY_AFTER_S)
        if self.num_running < self._max_running:
            self.num_running += 1
            self._idle.clear()
            return
        if len(self._waiting) >= self._max_queued:
            message = f"requests at work: {self.num_running}, and waiting: {self.num_queued}; try again later"
            raise Overloaded(message, self._retry_after_s())
        try:
            async with asyncio.timeout(deadline_s):
                await self._turn()
        except TimeoutError as e:
            message = f"the deadline of {deadline_s:g} s passed while the request waited in the queue"
            raise DeadlineExceeded(message) from e

    async def _turn(self) -> None:
        """Waits until a request that leaves hands its place over."""
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
        """Gives this place to the first request in the queue, or frees it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.num_running -= 1
        if self.num_running == 0:
            self._idle.set()

    def _retry_after_s(self) -> float:
        """The time until the queue has a place again, at the mean service time so far."""
        until_free_s = self._mean_service_s * (self.num_queued + 1) / self._max_running
        return min(MAX_RETRY_AFTER_S, math.ceil(until_free_s))
