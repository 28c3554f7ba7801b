"""Times of requests in an open loop, in which no user waits for an answer before the next one asks.

All kinds but `trace` are one construction. Gaps of mean 1 are drawn in operational time, with a coefficient
of variation `cv` (0: even, 1: a Poisson process, above: bursts; a gamma renewal process). Each point is moved
to the time at which the expected number of arrivals reaches it: the inverse of the integrated rate.
Source: the time-rescaling theorem (Cinlar 1975, Introduction to Stochastic Processes, 4.7), for gamma gaps as
in Berman 1981, "Inhomogeneous and modulated gamma processes", Biometrika 68.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2_serve.config import Config

Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_BISECTIONS = 60
MAX_DURATION_S = 1e7
"""Longest run: four months. A longer one is a mistake, most likely of units."""


class _Steady(Config):
    """A constant rate."""

    rate_per_s: Rate = Field(gt=0)

    def rate_at(self, time_s: float, duration_s: float) -> float:
        """Expected arrivals per second at `time_s` of a run of `duration_s`."""
        return self.rate_per_s

    def time_of(self, count: float, duration_s: float) -> float:
        """The time at which `count` arrivals are expected; infinite if so many never come."""
        return count / self.rate_per_s


class ConstantArrivals(_Steady):
    """Evenly spaced arrivals, the first at 0."""

    kind: Literal["constant"]
    cv: ClassVar[float] = 0.0


class PoissonArrivals(_Steady):
    """Independent users."""

    kind: Literal["poisson"]
    cv: ClassVar[float] = 1.0


class GammaArrivals(_Steady):
    """Bursts: gaps are gamma distributed."""

    kind: Literal["gamma"]
    cv: float = Field(gt=0, le=20)
    """Coefficient of variation of the gaps; 1 is Poisson."""


class _Shaped(_Steady):
    """A rate that changes over the run."""

    cv: float = Field(default=1.0, ge=0, le=20)
    """Coefficient of variation of the gaps at a constant rate: 0 even, 1 Poisson, above 1 bursts."""


class RampArrivals(_Shaped):
    """A rate that changes linearly over the run."""

    kind: Literal["ramp"]
    rate_per_s: Rate
    """Rate at the start."""
    to_rate_per_s: Rate
    """Rate at the end."""

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if self.rate_per_s == self.to_rate_per_s == 0:
            raise ValueError("rate_per_s and to_rate_per_s are both 0: nothing would be sent")
        return self

    def rate_at(self, time_s: float, duration_s: float) -> float:
        return self.rate_per_s + (self.to_rate_per_s - self.rate_per_s) * time_s / duration_s

    def time_of(self, count: float, duration_s: float) -> float:
        """The root of first * t + slope * t^2 / 2 = count, in the form that does not cancel."""
        first, slope = self.rate_per_s, (self.to_rate_per_s - self.rate_per_s) / duration_s
        inside = first * first + 2 * slope * count
        if inside < 0:
            return math.inf
        below = first + math.sqrt(inside)
        return 2 * count / below if below > 0 else 0.0


class DiurnalArrivals(_Shaped):
    """A sine that starts at its trough: the day of one time zone, of any length. `rate_per_s` is its mean."""

    kind: Literal["diurnal"]
    period_s: float = Field(gt=0)
    peak_to_mean: float = Field(default=1.8, ge=1, le=2)

    def rate_at(self, time_s: float, duration_s: float) -> float:
        swing = (self.peak_to_mean - 1) * math.cos(2 * math.pi * time_s / self.period_s)
        return self.rate_per_s * (1 - swing)

    def time_of(self, count: float, duration_s: float) -> float:
        """Bisects within one period, as the integrated rate, t - sin, has no inverse in closed form."""
        mean, period, swing = self.rate_per_s, self.period_s, self.peak_to_mean - 1
        periods, rest = divmod(count, mean * period)
        low, high = 0.0, period
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if (
                mean * (middle - swing * period / (2 * math.pi) * math.sin(2 * math.pi * middle / period))
                < rest
            ):
                low = middle
            else:
                high = middle
        return periods * period + high if rest else periods * period


class OnOffArrivals(_Shaped):
    """Phases of load, the first at 0, with silence or a lower rate between them.

    The mean rate of a cycle is (rate_per_s * on_s + off_rate_per_s * off_s) / (on_s + off_s).
    """

    kind: Literal["on_off"]
    off_rate_per_s: Rate = 0.0
    on_s: float = Field(gt=0)
    off_s: float = Field(gt=0)

    def rate_at(self, time_s: float, duration_s: float) -> float:
        is_on = time_s % (self.on_s + self.off_s) < self.on_s
        return self.rate_per_s if is_on else self.off_rate_per_s

    def time_of(self, count: float, duration_s: float) -> float:
        on = self.rate_per_s * self.on_s
        cycles, rest = divmod(count, on + self.off_rate_per_s * self.off_s)
        start_s = cycles * (self.on_s + self.off_s)
        if rest < on or self.off_rate_per_s == 0:
            return start_s + rest / self.rate_per_s
        return start_s + self.on_s + (rest - on) / self.off_rate_per_s


class TraceArrivals(Config):
    """Times and token counts from a file (`r2_serve.lab.workload.trace_file`)."""

    kind: Literal["trace"]
    path: str
    """CSV file, relative to the workload file."""
    format: Literal["burstgpt", "azure"]
    speedup: float = Field(default=1.0, gt=0)
    """Factor on the rate: 2 halves all times."""
    skip: int = Field(default=0, ge=0)
    """Rows left out at the start; the first row after them comes at 0."""
    limit: int | None = Field(default=None, ge=1)
    """Most requests taken."""


DrawnArrivals = (
    ConstantArrivals | PoissonArrivals | GammaArrivals | RampArrivals | DiurnalArrivals | OnOffArrivals
)
Arrivals = Annotated[DrawnArrivals | TraceArrivals, Field(discriminator="kind")]


def arrival_times(arrivals: DrawnArrivals, duration_s: float, draw: random.Random) -> Iterator[float]:
    """Times in seconds from the start, in order, before `duration_s`."""
    for point in accumulate(_unit_gaps(arrivals.cv, draw)):
        time_s = arrivals.time_of(point, duration_s)
        if time_s >= duration_s:
            return
        yield time_s


def _unit_gaps(cv: float, draw: random.Random) -> Iterator[float]:
    if cv == 0:
        yield 0.0
    while True:
        yield 1.0 if cv == 0 else draw.expovariate(1.0) if cv == 1 else draw.gammavariate(1 / cv**2, cv**2)
