"""Simulated time: simpy's event queue, used with plain callbacks, as a process per call would cost ten times as much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simpy import Environment
from simpy.core import NORMAL
from simpy.events import Event

Action = Callable[[Any], None]


class _Occurrence(Event):
    """An event that will happen, with what is to be done then. simpy's own `Timeout`, without what only processes need."""

    _ok = True

    def __init__(self, env: Environment, value: object, callback: Callable[[Event], None]) -> None:
        self.env = env
        self.callbacks = [callback]
        self._value = value


class Clock(Environment):
    """Seconds from the start of the run."""

    def after(self, delay_s: float, action: Action, value: object = None) -> None:
        """`action(value)`, `delay_s` from now; events of the same time in the order in which they were asked for."""
        self.schedule(_Occurrence(self, value, lambda event: action(event._value)), NORMAL, delay_s)

    def every(self, interval_s: float, action: Callable[[], None], *, first_s: float | None = None) -> None:
        """`action()` again and again, until the run ends."""

        def tick(_: object) -> None:
            action()
            self.after(interval_s, tick)

        self.after(interval_s if first_s is None else first_s, tick)
