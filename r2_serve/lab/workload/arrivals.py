"""Times of requests in an open loop, in which no user waits for an answer before the next one asks.

All kinds but `trace` are one construction. Gaps of mean 1 are drawn in operational time, with a coefficient of variation `cv`
(0: even, 1: a Poisson process, above: bursts; a gamma renewal process), and each point is moved to the time at which the
expected number of arrivals reaches it: the inverse of the integrated rate.
Source: the time-rescaling theorem (Cinlar 1975, Introduction to Stochastic Processes, 4.7), for gamma gaps as in
Berman 1981, "Inhomogeneous and modulated gamma processes", Biometrika 68.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from r2_serve.config import Config

Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Inverse = Callable[[float], float]
"""Turns a number of expected arrivals into the time at which it is reached; infinite if it never is."""
_BISECTIONS = 60
MAX_DURATION_S = 1e7
"""Longest run: four months. A longer one is a mistake, most likely of units."""


class Shaped(Config):
    """A rate that changes over the run: the base of three kinds."""

    cv: float = Field(default=1.0, ge=0, le=20)
    """Coefficient of variation of the gaps at a constant rate: 0 even, 1 Poisson, above 1 bursts."""


class ConstantArrivals(Config):
    """Evenly spaced arrivals, the first at 0."""

    kind: Literal["constant"]
    rate_per_s: Rate = Field(gt=0)


class PoissonArrivals(Config):
    """Independent users."""

    kind: Literal["poisson"]
    rate_per_s: Rate = Field(gt=0)


class GammaArrivals(Config):
    """Bursts: gaps are gamma distributed."""

    kind: Literal["gamma"]
    rate_per_s: Rate = Field(gt=0)
    cv: float = Field(gt=0, le=20)
    """Coefficient of variation of the gaps; 1 is Poisson."""


class RampArrivals(Shaped):
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


class DiurnalArrivals(Shaped):
    """A sine that starts at its trough: the day of one time zone, of any length."""

    kind: Literal["diurnal"]
    rate_per_s: Rate = Field(gt=0)
    """Mean over a whole period."""
    period_s: float = Field(gt=0)
    peak_to_mean: float = Field(default=1.8, ge=1, le=2)


class OnOffArrivals(Shaped):
    """Phases of load, the first at 0, with silence or a lower rate between them."""

    kind: Literal["on_off"]
    rate_per_s: Rate = Field(gt=0)
    """Rate while on. The mean of a cycle is (rate_per_s * on_s + off_rate_per_s * off_s) / (on_s + off_s)."""
    off_rate_per_s: Rate = 0.0
    on_s: float = Field(gt=0)
    off_s: float = Field(gt=0)


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
    inverse = _inverse(arrivals, duration_s)
    for point in accumulate(_unit_gaps(_cv(arrivals), draw)):
        time_s = inverse(point)
        if time_s >= duration_s:
            return
        yield time_s


def rate_at(arrivals: DrawnArrivals, time_s: float, duration_s: float) -> float:
    """Expected arrivals per second at `time_s`."""
    match arrivals:
        case RampArrivals(rate_per_s=first, to_rate_per_s=last):
            return first + (last - first) * time_s / duration_s
        case DiurnalArrivals(rate_per_s=mean, period_s=period, peak_to_mean=peak):
            return mean * (1 - (peak - 1) * math.cos(2 * math.pi * time_s / period))
        case OnOffArrivals(on_s=on_s, off_s=off_s):
            is_on = time_s % (on_s + off_s) < on_s
            return arrivals.rate_per_s if is_on else arrivals.off_rate_per_s
        case _:
            return arrivals.rate_per_s


def _unit_gaps(cv: float, draw: random.Random) -> Iterator[float]:
    if cv == 0:
        yield 0.0
    while True:
        yield 1.0 if cv == 0 else draw.expovariate(1.0) if cv == 1 else draw.gammavariate(1 / cv**2, cv**2)


def _cv(arrivals: DrawnArrivals) -> float:
    match arrivals:
        case ConstantArrivals():
            return 0.0
        case PoissonArrivals():
            return 1.0
        case _:
            return arrivals.cv


def _inverse(arrivals: DrawnArrivals, duration_s: float) -> Inverse:
    match arrivals:
        case RampArrivals(rate_per_s=first, to_rate_per_s=last):
            return lambda count: _ramp_time(count, first, (last - first) / duration_s)
        case DiurnalArrivals():
            return lambda count: _diurnal_time(count, arrivals)
        case OnOffArrivals():
            return lambda count: _on_off_time(count, arrivals)
        case _:
            rate = arrivals.rate_per_s
            return lambda count: count / rate


def _ramp_time(count: float, first: float, slope: float) -> float:
    """The root of first * t + slope * t^2 / 2 = count, in the form that does not cancel."""
    inside = first * first + 2 * slope * count
    if inside < 0:
        return math.inf
    below = first + math.sqrt(inside)
    return 2 * count / below if below > 0 else 0.0


def _diurnal_time(count: float, arrivals: DiurnalArrivals) -> float:
    """Bisects within one period, as the integrated rate, t - sin, has no inverse in closed form."""
    mean, period, swing = arrivals.rate_per_s, arrivals.period_s, arrivals.peak_to_mean - 1
    periods, rest = divmod(count, mean * period)
    low, high = 0.0, period
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if mean * (middle - swing * period / (2 * math.pi) * math.sin(2 * math.pi * middle / period)) < rest:
            low = middle
        else:
            high = middle
    return periods * period + high if rest else periods * period


def _on_off_time(count: float, arrivals: OnOffArrivals) -> float:
    on = arrivals.rate_per_s * arrivals.on_s
    cycles, rest = divmod(count, on + arrivals.off_rate_per_s * arrivals.off_s)
    start_s = cycles * (arrivals.on_s + arrivals.off_s)
    if rest < on or arrivals.off_rate_per_s == 0:
        return start_s + rest / arrivals.rate_per_s
    return start_s + arrivals.on_s + (rest - on) / arrivals.off_rate_per_s
