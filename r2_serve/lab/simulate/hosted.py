"""A model behind an API as its callers see it: each call takes a time; beyond its limits it answers 429."""

from __future__ import annotations

import math
import random
from contextlib import suppress

from r2_serve.calls.cooldown import Cooldown, Permit
from r2_serve.config import CooldownConfig
from r2_serve.errors import EngineUnavailable
from r2_serve.lab.simulate.calls import AT_REPLICA, OVER, SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import HostedSpeed

SECONDS_PER_MINUTE = 60.0


class Bucket:
    """A rate limit that fills steadily and holds `burst_s` worth. A `per_minute` of None is no limit."""

    def __init__(self, per_minute: float | None, burst_s: float) -> None:
        self._per_s = math.inf if per_minute is None else per_minute / SECONDS_PER_MINUTE
        self._capacity = self._per_s * burst_s
        self._level, self._at_s = self._capacity, 0.0

    def wait_s(self, now_s: float, amount: float) -> float:
        """Time until `amount` may be taken. A full bucket gives more than it holds."""
        if math.isinf(self._per_s):
            return 0.0
        self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return max(0.0, (min(amount, self._capacity) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        """Takes `amount`. The level may fall below zero, so that the limit holds on average."""
        self._level -= amount


class HostedModel:
    """One hosted model with its limits and the router's own cooldown, which rests a model that refuses."""

    def __init__(
        self, clock: Clock, name: str, speed: HostedSpeed, draw: random.Random, cooldown: CooldownConfig
    ) -> None:
        self.name = name
        self._clock, self._speed, self._draw = clock, speed, draw
        self._rest_config, self._rest = cooldown, Cooldown(lambda: clock.now)
        self._requests = Bucket(speed.requests_per_minute, speed.burst_s)
        self._tokens = Bucket(speed.tokens_per_minute, speed.burst_s)

    def submit(self, call: SimulatedCall) -> None:
        call.target, now = self, self._clock.now
        permit = self._rest.insist() if call.is_last_resort else self._rest.ask()
        if permit is None:
            return self._refuse(call, "resting", None)
        num_tokens = call.prompt_tokens + call.reply_tokens
        wait_s = max(self._requests.wait_s(now, 1.0), self._tokens.wait_s(now, num_tokens))
        if wait_s > 0:
            self._learn(permit, EngineUnavailable("429", wait_s))
            return self._refuse(call, "rate_limited", wait_s)
        self._requests.take(1.0)
        self._tokens.take(num_tokens)
        self._learn(permit, None)
        factor = self._draw.lognormvariate(0.0, self._speed.spread) if self._speed.spread else 1.0
        call.state, call.begun_s, call.first_token_s = AT_REPLICA, now, now + factor * self._speed.ttft_s
        reply_s = call.reply_tokens / self._speed.tokens_per_s
        return self._clock.after(factor * (self._speed.ttft_s + reply_s), self._end, call)

    def cancel(self, call: SimulatedCall) -> None:
        call.state = OVER

    def _refuse(self, call: SimulatedCall, reason: str, retry_after_s: float | None) -> None:
        call.state = OVER
        call.owner.call_failed(call, reason, retry_after_s)

    def _learn(self, permit: Permit, error: EngineUnavailable | None) -> None:
        with suppress(EngineUnavailable), self._rest.observing(permit, self._rest_config):
            if error is not None:
                raise error

    def _end(self, call: SimulatedCall) -> None:
        if call.state != OVER:
            call.state = OVER
            call.owner.call_done(call)
