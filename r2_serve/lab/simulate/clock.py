"""Simulated time: a queue of actions, each due at a time.

A process per call would cost ten times as much as the plain callbacks that this model needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Seconds from the start of the run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[..., object], object]] = []
        self._is_stopped = False

    def after(self, delay_s: float, action: Callable[[T], object], argument: T) -> None:
        """Calls `action(argument)` in `delay_s`. Actions due at the same time keep their order."""
        heappush(self._queue, (self.now + delay_s, next(self._numbers), action, argument))

    def every(self, interval_s: float, action: Callable[[], object], *, first_s: float | None = None) -> None:
        """Calls `action()` again and again until the run ends."""

        def tick(_: None) -> None:
            action()
            self.after(interval_s, tick, None)

        self.after(interval_s if first_s is None else first_s, tick, None)

    def run(self, until: float = math.inf) -> None:
        """Runs every action that is due before `until`, or up to `stop`."""
        queue = self._queue
        self._is_stopped = False
        while queue and queue[0][0] < until and not self._is_stopped:
            self.now, _, action, argument = heappop(queue)
            action(argument)
        if until < math.inf:
            self.now = until

    def stop(self) -> None:
        """Ends the run after the actions that are due now."""
        self.after(0.0, self._stop, None)

    def num_actions(self) -> int:
        """Actions so far, including those still to come."""
        return next(self._numbers)

    def _stop(self, _: None) -> None:
        self._is_stopped = True
