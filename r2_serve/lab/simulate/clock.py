"""Simulated time: simpy's event queue, used with plain callbacks, as a process per call would cost ten times as much."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from simpy import Environment
from simpy.core import EmptySchedule
from simpy.events import NORMAL, Event

Action = Callable[[Any], None]


class _Occurrence(Event):
    """What is to be done at a time. Nobody waits for it, so it needs none of what other events carry."""

    __slots__ = ("action", "argument")

    def __init__(self, action: Action, argument: object) -> None:
        self.action, self.argument = action, argument


class Clock(Environment):
    """Seconds from the start of the run."""

    def after(self, delay_s: float, action: Action, argument: object = None) -> None:
        """`action(argument)`, `delay_s` from now; what is due at the same time happens in the order in which it was asked for."""
        heappush(self._queue, (self._now + delay_s, NORMAL, next(self._eid), _Occurrence(action, argument)))

    def num_events(self) -> int:
        """So far, those to come among them."""
        return next(self._eid)

    def every(self, interval_s: float, action: Callable[[], None], *, first_s: float | None = None) -> None:
        """`action()` again and again, until the run ends."""

        def tick(_: object) -> None:
            action()
            self.after(interval_s, tick)

        self.after(interval_s if first_s is None else first_s, tick)

    def step(self) -> None:
        """The next event, as `Environment.step`, but for a shorter way where it is one of ours."""
        queue = self._queue
        if not queue:
            raise EmptySchedule
        event = queue[0][3]
        if type(event) is not _Occurrence:
            return super().step()
        self._now = heappop(queue)[0]
        return event.action(event.argument)
