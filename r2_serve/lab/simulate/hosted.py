"""A model behind an API as its callers see it: each call takes a time; beyond its limits it answers 429."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from r2_serve.calls.cooldown import Cooldown, Permit
from r2_serve.config import CooldownConfig
from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.lab.simulate.calls import AT_REPLICA, OVER, SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import HostedSpeed
from r2_serve.traces import read_traces

SECONDS_PER_MINUTE = 60.0
NEAREST = 20
"""Recorded calls of about the same length, one of which is drawn."""


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


@dataclass(frozen=True)
class Replayed:
    """The calls of one model in a router's traces."""

    calls: list[tuple[float, float]]
    """Reply tokens and latency in seconds of each answered call, in order of the tokens."""
    failed_share: float
    """Calls that failed, as a share of those that ended."""

    @classmethod
    def of(cls, path: Path, model: str) -> Self:
        """Reads traces. Raises: ConfigError if they cannot be read, or have no answered call of `model`."""
        try:
            found = [call for trace in read_traces(path) for call in trace.calls if call.model == model]
        except (OSError, ValueError) as e:
            raise ConfigError(f"traces of {model!r} cannot be read: {e}") from e
        ended = [call for call in found if call.outcome != "cancelled"]
        answered = [call for call in ended if call.outcome == "ok"]
        if not answered:
            raise ConfigError(f"{path} has no answered call of model {model!r}")
        calls = [(float(call.usage.completion_tokens), call.end_s - call.start_s) for call in answered]
        return cls(sorted(calls), 1 - len(answered) / len(ended))

    def latency_s(self, reply_tokens: float, draw: random.Random) -> float:
        """The latency of one of the `NEAREST` recorded calls whose replies were about as long."""
        at = bisect_left(self.calls, (reply_tokens, 0.0))
        first = max(0, min(at - NEAREST // 2, len(self.calls) - NEAREST))
        return draw.choice(self.calls[first : first + NEAREST])[1]


class HostedModel:
    """One hosted model with its limits and the router's own cooldown, which rests a model that refuses."""

    def __init__(
        self, clock: Clock, name: str, speed: HostedSpeed, draw: random.Random, cooldown: CooldownConfig
    ) -> None:
        self.name = name
        self._clock, self._speed, self._draw = clock, speed, draw
        self._rest_config, self._rest = cooldown, Cooldown(lambda: clock.now)
        self._replayed = None if speed.traces is None else Replayed.of(Path(speed.traces), name)
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
        if self._replayed is not None and self._draw.random() < self._replayed.failed_share:
            self._learn(permit, EngineUnavailable("failed as in the trace"))
            return self._refuse(call, "unavailable", None)
        self._learn(permit, None)
        call.state, call.begun_s = AT_REPLICA, now
        if self._replayed is not None:
            latency_s = self._replayed.latency_s(call.reply_tokens, self._draw)
            call.first_token_s = now + min(self._speed.ttft_s, latency_s)
            return self._clock.after(latency_s, self._end, call)
        factor = self._draw.lognormvariate(0.0, self._speed.spread) if self._speed.spread else 1.0
        call.first_token_s = now + factor * self._speed.ttft_s
        assert self._speed.tokens_per_s is not None
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
