"""A replica's busy time, divided equally at each moment among the calls that it works on.

A call's share is what the call cost the replica: its whole duration if it is alone, about an eighth in a
batch of eight. The shares of all calls add up to the replica's busy time. Replicas and the simulator use it.

Source: the virtual time of processor sharing (Parekh and Gallager, "A generalized processor sharing approach
to flow control in integrated services networks", 1993).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r2_serve.types import Work


class SharedTime:
    """The shared time of one replica. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_calls = 0
        self._shared_s = 0.0
        """Share at `_until_s` of a call that was always there."""
        self._until_s = clock()

    @contextmanager
    def call(self) -> Iterator[Callable[[], Work]]:
        """Counts a call as at work inside the block. Yields a function that gives its work so far."""
        start_s, mark = self._clock(), self.begin()
        try:
            yield lambda: Work(service_s=self._clock() - start_s, share_s=self.share_s(mark))
        finally:
            self.end()

    def begin(self) -> float:
        """Counts a call as at work. Returns its mark, for `share_s`."""
        self._advance()
        self._num_calls += 1
        return self._shared_s

    def share_s(self, mark: float) -> float:
        """Seconds that a call at work has had of the replica since its `mark`."""
        self._advance()
        return self._shared_s - mark

    def end(self) -> None:
        """Counts a call as gone, answered or not."""
        self._advance()
        self._num_calls -= 1

    def _advance(self) -> None:
        now_s = self._clock()
        if self._num_calls:
            self._shared_s += (now_s - self._until_s) / self._num_calls
        self._until_s = now_s
