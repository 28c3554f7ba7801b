"""Replicas: what takes calls in, and when it has done with them. Pure: no queues, no scaling, no routing.

Three kinds: a model's (a batching engine, or a fixed delay) and a stage's, which is held while its calls are made elsewhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from r2_serve.config import SpeedConfig
from r2_serve.engines.batching import Batch
from r2_serve.engines.sharing import SharedTime
from r2_serve.lab.simulate.calls import Call
from r2_serve.lab.simulate.clock import Clock


class Replica:
    """One replica of a deployment. `num_ongoing` counts calls from the moment that they are sent here."""

    def __init__(self, started_s: float) -> None:
        self.num_ongoing = 0
        self.started_s = started_s
        self.stops_s = math.inf
        """Earliest end, once it was told to stop."""

    takes_s: float | None = None
    """Of any call, where that is the same for all: such a replica is not told of arrivals, but of ends."""

    def begin(self, call: Call) -> None:
        """The call has arrived."""
        raise NotImplementedError

    def end_of(self, call: Call) -> None:
        """The call's time is over, where `takes_s` says when that is."""
        raise NotImplementedError

    def abandon(self, call: Call) -> None:
        """The call was cancelled after it arrived."""
        raise NotImplementedError


Done = Callable[[Call, Replica], None]


class EngineReplica(Replica):
    """A continuously batching engine."""

    def __init__(self, clock: Clock, speed: SpeedConfig, done: Done) -> None:
        super().__init__(clock.now)
        self._clock, self._batch, self._done = clock, Batch(speed), done
        self._time = SharedTime(lambda: clock.now)
        self._calls: dict[int, Call] = {}
        self._wakes_s = math.inf

    def begin(self, call: Call) -> None:
        sequence = self._batch.arrive(self._clock.now, call.prompt_tokens, call.reply_tokens)
        call.sequence, call.mark = sequence, self._time.begin()
        self._calls[sequence] = call
        self._set_alarm()

    def abandon(self, call: Call) -> None:
        if self._calls.pop(call.sequence, None) is not None:
            self._batch.leave(self._clock.now, call.sequence)
            self._time.end()
            self._set_alarm()

    def _set_alarm(self) -> None:
        """For the next end; one that has become too early just finds nothing to do."""
        next_s = self._batch.no_end_before_s()
        if next_s is not None and next_s < self._wakes_s:
            self._wakes_s = next_s
            self._clock.after(max(0.0, next_s - self._clock.now), self._wake, next_s)

    def _wake(self, due_s: float) -> None:
        """`due_s` is exact, where the clock's own time is off by a rounding."""
        if due_s != self._wakes_s:
            return  # an earlier alarm took its place
        self._wakes_s = math.inf
        for finished in self._batch.advance(due_s):
            call = self._calls.pop(finished.sequence, None)
            if call is not None:
                call.share_s = self._time.share_s(call.mark)
                self._time.end()
                call.first_token_s = finished.decode_start_s + (
                    finished.end_s - finished.decode_start_s
                ) / max(1.0, call.reply_tokens)
                self._done(call, self)
        self._set_alarm()


class DelayReplica(Replica):
    """Every call takes as long, whatever else there is: the scripted engine's `delay_s`."""

    def __init__(self, clock: Clock, delay_s: float, done: Done) -> None:
        super().__init__(clock.now)
        self.takes_s = delay_s
        self._clock, self._done = clock, done
        self._abandoned: set[Call] = set()

    def abandon(self, call: Call) -> None:
        self._abandoned.add(call)

    def end_of(self, call: Call) -> None:
        if call in self._abandoned:
            self._abandoned.remove(call)
            return
        assert self.takes_s is not None
        call.share_s = self.takes_s / self.num_ongoing
        call.first_token_s = self._clock.now - self.takes_s * (1 - 1 / max(1.0, call.reply_tokens))
        self._done(call, self)


@dataclass(frozen=True)
class Room:
    """How many calls a stage's replica works on, and how many wait in it."""

    max_running: float = math.inf
    max_queued: float = math.inf


class StageReplica(Replica):
    """Router, decomposer or allocator: holds a call until told that it is over. At most `max_running` at once; then a queue."""

    def __init__(self, clock: Clock, room: Room, refused: Done) -> None:
        super().__init__(clock.now)
        self._room, self._refused = room, refused
        self.num_running = 0
        self.queue: deque[Call] = deque()

    def begin(self, call: Call) -> None:
        if self.num_running < self._room.max_running:
            self.num_running += 1
            call.owner.call_admitted(call)
        elif len(self.queue) < self._room.max_queued:
            self.queue.append(call)
        else:
            self._refused(call, self)

    def end(self) -> None:
        """One call at work is over; the next in the queue takes its place."""
        if self.queue:
            call = self.queue.popleft()
            call.owner.call_admitted(call)
        else:
            self.num_running -= 1

    def abandon(self, call: Call) -> None:
        if call in self.queue:
            self.queue.remove(call)
        else:
            self.end()
