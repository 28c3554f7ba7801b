"""Rest for a model that keeps failing: its calls go to other models for a while, then one call probes it.

The state lives in the memory of one process: each router, decomposer and allocator replica finds out for
itself. There is no background task: a rest is over when its time has passed and a call asks.
`r2_serve.calls.caller` decides whether a resting model is called all the same because no other is left.

    closed --- failures in a row, or a Retry-After ---> resting --- time over, a call asks ---> probed
       ^                                                   |  ^                                    |
       +------------ a call was answered ------------------+  +------- failed: twice as long ------+
       +----------------------------------- answered ----------------------------------------------+

Source of the defaults: Envoy's outlier detection (failures in a row, growing ejection, 300 s at most) and
LiteLLM's cooldowns (three failures, Retry-After kept)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r2_serve.calls.retry_rules import asked_wait_s, rule_for
from r2_serve.config import CooldownConfig
from r2_serve.errors import EngineError, ReplicaDied

GRAIN_S = 0.001
"""A timer may be early by the clock's resolution."""
NUM_DEATHS_KEPT = 64
"""Deaths that are remembered. The calls of one death report it within moments."""


def event_loop_time_s() -> float:
    """Monotonic time in seconds, which no change of the machine's clock affects."""
    return asyncio.get_running_loop().time()


class Permit:
    """Leave to make one call. Its outcome counts only if the state of the model has not changed since."""

    def __init__(self, *, state: int, is_probe: bool) -> None:
        self.state, self.is_probe = state, is_probe


class Cooldown:
    """The rests of one model. The settings come with each call, as they may change at any time."""

    def __init__(self, clock: Callable[[], float] = event_loop_time_s) -> None:
        self.num_rests = 0
        """Number of rests since the process started."""
        self._clock = clock
        self._rests_until: float | None = None
        self._is_probed = False
        self._state = 0
        """Number of beginnings and ends of rests; the outcome of a call from an earlier state is ignored."""
        self._num_failures = 0
        self._num_rests_in_a_row = 0
        self._known_deaths: deque[str] = deque(maxlen=NUM_DEATHS_KEPT)

    @property
    def is_resting(self) -> bool:
        """Whether a rest has begun and no call was answered since."""
        return self._rests_until is not None

    def heed(self, config: CooldownConfig) -> None:
        """End the rest in progress if rests have been turned off. Called before a call asks."""
        if config.first_s == 0 and self.is_resting:
            self._end_rest()

    def left_s(self) -> float:
        """Seconds until a call may probe the model; 0 if it does not rest."""
        left_s = 0.0 if self._rests_until is None else self._rests_until - self._clock()
        return left_s if left_s > GRAIN_S else 0.0

    def ask(self) -> Permit | None:
        """None: ask another model. The first call after a rest is the probe; the others still get None."""
        if self._rests_until is None:
            return Permit(state=self._state, is_probe=False)
        if self._is_probed or self.left_s() > 0:
            return None
        self._is_probed = True
        return Permit(state=self._state, is_probe=True)

    def insist(self) -> Permit:
        """A permit in any case, for a call that no other model can take."""
        return self.ask() or Permit(state=self._state, is_probe=False)

    @contextmanager
    def observing(self, permit: Permit, config: CooldownConfig) -> Iterator[None]:
        """Learn from the call inside. A refusal counts as an answer; a cancelled call tells nothing."""
        try:
            yield
        except EngineError as e:
            if rule_for(e).is_failure and (permit.is_probe or self._is_news(e)):
                self._failed(permit, config, asked_wait_s(e) or None)
            elif not rule_for(e).is_failure:
                self._answered(permit)
            raise
        except BaseException:
            self._is_probed = self._is_probed and not (permit.is_probe and permit.state == self._state)
            raise
        self._answered(permit)

    def _is_news(self, error: EngineError) -> bool:
        """False for one more call that was lost with the same replica or node: the others may be well."""
        if not isinstance(error, ReplicaDied):
            return True
        is_known = error.lost in self._known_deaths
        self._known_deaths.append(error.lost)
        return not is_known

    def _answered(self, permit: Permit) -> None:
        if permit.state != self._state:
            return
        self._end_rest()

    def _failed(self, permit: Permit, config: CooldownConfig, asked_s: float | None) -> None:
        if permit.state != self._state or (self.is_resting and not permit.is_probe):
            return
        if config.first_s == 0:
            self._end_rest()
            return
        self._num_failures += 1
        if permit.is_probe or asked_s is not None or self._num_failures >= config.after_failures:
            self._rest(config, asked_s)

    def _end_rest(self) -> None:
        self._num_failures = self._num_rests_in_a_row = 0
        if self.is_resting:
            self._rests_until, self._is_probed = None, False
            self._state += 1

    def _rest(self, config: CooldownConfig, asked_s: float | None) -> None:
        """Rest for as long as the provider asked, else for twice as long as last time."""
        if asked_s is None:
            asked_s = config.first_s * 2.0 ** min(self._num_rests_in_a_row, 64)
            self._num_rests_in_a_row += 1
        self._num_failures = 0
        self._rests_until, self._is_probed = self._clock() + min(asked_s, config.longest_s), False
        self._state += 1
        self.num_rests += 1
