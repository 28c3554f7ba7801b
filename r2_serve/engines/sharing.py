"""A replica's busy time, divided among the calls that it works on: at each moment equally.

So a call's share is what it cost the replica: alone it is its whole duration, in a batch of eight about an eighth, and the shares of
all calls add up to the time in which there was one. Pure arithmetic on a clock, for replicas and the simulator alike.

Source: the virtual time of processor sharing (Parekh and Gallager, A generalized processor sharing approach to flow control, 1993).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r2_serve.types import Work


class SharedTime:
    """Of one replica; `clock` is any monotonic one, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_calls = 0
        self._shared_s = 0.0
        """What a call that was always there would have got by `_until_s`."""
        self._until_s = clock()

    @contextmanager
    def call(self) -> Iterator[Callable[[], Work]]:
        """For as long as a call is worked on. Gives what says, inside, what it has taken so far."""
        start_s, mark = self._clock(), self.begin()
        try:
            yield lambda: Work(service_s=self._clock() - start_s, share_s=self.share_s(mark))
        finally:
            self.end()

    def begin(self) -> float:
        """A call comes. Returns its mark, for `share_s`."""
        self._advance()
        self._num_calls += 1
        return self._shared_s

    def share_s(self, mark: float) -> float:
        """Of a call that has not gone yet."""
        self._advance()
        return self._shared_s - mark

    def end(self) -> None:
        """A call goes, answered or not."""
        self._advance()
        self._num_calls -= 1

    def _advance(self) -> None:
        now_s = self._clock()
        if self._num_calls:
            self._shared_s += (now_s - self._until_s) / self._num_calls
        self._until_s = now_s
