"""Three kinds of replica: a batching engine, a fixed delay, and a router stage that holds calls while others
work.

Replicas neither queue calls for one another nor scale: that is the deployment's part.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from r2_serve.config import SpeedConfig
from r2_serve.engines.batching import Batch
from r2_serve.engines.sharing import SharedTime
from r2_serve.lab.simulate.calls import CallEnd, Replica, SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.machines import Card


class EngineReplica(Replica):
    """A continuously batching engine."""

    def __init__(self, clock: Clock, speed: SpeedConfig, done: CallEnd) -> None:
        super().__init__()
        self._clock, self._batch, self._done = clock, Batch(speed), done
        self._time = SharedTime(lambda: clock.now)
        self._calls: dict[int, SimulatedCall] = {}
        self._wakes_s = math.inf
        self._card: Card | None = None

    @property
    def engine_state(self) -> tuple[int, int]:
        """Sequences at work in the batch, and those that wait for a place in it."""
        return len(self._batch) - self._batch.num_waiting, self._batch.num_waiting

    def stand_on(self, card: Card | None) -> None:
        self._card = card

    def set_pace(self, pace: float) -> None:
        self._batch.set_pace(self._clock.now, pace)
        self._set_alarm()

    def die(self) -> list[SimulatedCall]:
        self.is_dead, lost = True, list(self._calls.values())
        self._calls.clear()
        if self._card is not None:
            self._card.end(self)
        return lost

    def begin(self, call: SimulatedCall) -> None:
        if self._card is not None and not self._calls:
            self._card.begin(self)
        call.sequence = self._batch.arrive(self._clock.now, call.prompt_tokens, call.reply_tokens)
        call.mark = self._time.begin()
        self._calls[call.sequence] = call
        self._set_alarm()

    def abandon(self, call: SimulatedCall) -> None:
        if self._calls.pop(call.sequence, None) is not None:
            self._batch.leave(self._clock.now, call.sequence)
            self._time.end()
            self._rest_if_idle()
            self._set_alarm()

    def _rest_if_idle(self) -> None:
        if self._card is not None and not self._calls:
            self._card.end(self)

    def _set_alarm(self) -> None:
        """Sets an alarm for the next end. An alarm that has become too early finds nothing to do."""
        next_s = self._batch.no_end_before_s()
        if next_s is not None and next_s < self._wakes_s:
            self._wakes_s = next_s
            self._clock.after(max(0.0, next_s - self._clock.now), self._wake, next_s)

    def _wake(self, due_s: float) -> None:
        """Ends what is due. `due_s` is exact; the clock's own time differs by a rounding error."""
        if due_s != self._wakes_s or self.is_dead:
            return  # an earlier alarm took its place
        self._wakes_s = math.inf
        for finished in self._batch.advance(due_s):
            call = self._calls.pop(finished.sequence, None)
            if call is not None:
                call.share_s = self._time.share_s(call.mark)
                self._time.end()
                decode_s = finished.end_s - finished.decode_start_s
                call.first_token_s = finished.decode_start_s + decode_s / max(1.0, call.reply_tokens)
                self._rest_if_idle()
                self._done(call, self)
        self._set_alarm()


class DelayReplica(Replica):
    """A scripted engine with a `delay_s`: every call takes the same time at any load."""

    def __init__(self, clock: Clock, delay_s: float, done: CallEnd) -> None:
        super().__init__()
        self.takes_s = delay_s
        self._clock, self._done = clock, done
        self._abandoned: set[SimulatedCall] = set()

    def abandon(self, call: SimulatedCall) -> None:
        self._abandoned.add(call)

    def end_of(self, call: SimulatedCall) -> None:
        if call in self._abandoned:
            self._abandoned.remove(call)
            return
        assert self.takes_s is not None
        call.share_s = self.takes_s / self.num_ongoing
        call.first_token_s = self._clock.now - self.takes_s * (1 - 1 / max(1.0, call.reply_tokens))
        self._done(call, self)


@dataclass(frozen=True)
class Room:
    """Number of calls that a stage's replica works on, and number that wait in it."""

    max_running: float = math.inf
    max_queued: float = math.inf


class StageReplica(Replica):
    """A replica of the router, the decomposer or the allocator: it holds each call until that is released."""

    def __init__(self, room: Room, refused: CallEnd) -> None:
        super().__init__()
        self._room, self._refused = room, refused
        self._num_running = 0
        self._queue: deque[SimulatedCall] = deque()

    def begin(self, call: SimulatedCall) -> None:
        if self._num_running < self._room.max_running:
            self._num_running += 1
            call.owner.call_admitted(call)
        elif len(self._queue) < self._room.max_queued:
            self._queue.append(call)
        else:
            self._refused(call, self)

    def end(self) -> None:
        """Gives the place of a call that is over to the next in the queue."""
        if self._queue:
            call = self._queue.popleft()
            call.owner.call_admitted(call)
        else:
            self._num_running -= 1

    def abandon(self, call: SimulatedCall) -> None:
        if call in self._queue:
            self._queue.remove(call)
        else:
            self.end()
