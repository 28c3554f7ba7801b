"""What two routers did, and whether one is no worse: means with variances, intervals, and verdicts.

Shares and scores get one right and one wrong answer in addition, and never less variance than such a share
has, so that five answers without a failure prove nothing (Agresti and Caffo, The American Statistician 54,
2000). Costs and times are compared as a share of the incumbent's mean (delta method). Where queries come in
units, such as conversations, the variance is that of the units (Wasserman, All of Statistics, 2004, 9.9).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from r2_serve.types import Record, Trace

Metric = Literal["score", "agreement", "failures", "fallbacks", "cost", "seconds"]
Verdict = Literal["no worse", "worse", "open"]
SHARES: frozenset[Metric] = frozenset({"score", "agreement", "failures", "fallbacks"})
"""Metrics between 0 and 1; the others have any size."""
BETTER_HIGH: frozenset[Metric] = frozenset({"score", "agreement"})
LEAST_QUERIES = 20
"""Fewer queries on one side give no verdict: the normal interval does not hold."""


@dataclass(frozen=True)
class Mean:
    """A mean and the variance of that mean, of `n` queries."""

    n: int
    value: float
    variance: float


@dataclass
class Moments:
    """A running mean and variance (Welford 1962), in constant memory."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.squares += step * (value - self.mean)

    def estimate(self, *, is_share: bool) -> Mean:
        """The mean with its variance."""
        variance = self.squares / (self.n - 1) / self.n if self.n > 1 else math.inf
        return shrunk(self.n, self.mean, variance) if is_share else Mean(self.n, self.mean, variance)


class Comparison(Record):
    """One metric of both routers."""

    metric: Metric
    num_incumbent: int
    num_candidate: int
    incumbent: float | None
    """The mean; None where there is only a difference."""
    candidate: float
    difference: float
    """Candidate less incumbent; for `cost` and `seconds` as a share of the incumbent's mean."""
    interval: tuple[float, float]
    margin: float
    """How much worse the candidate may be."""
    verdict: Verdict


def shrunk(n: int, value: float, variance: float) -> Mean:
    """A share with one right and one wrong answer in addition."""
    share = (n * value + 1) / (n + 2)
    return Mean(n, share, max(variance if math.isfinite(variance) else 0.0, share * (1 - share) / (n + 2)))


def mean_of(values: Sequence[float], units: Sequence[str], *, is_share: bool) -> Mean:
    """The mean of all values; its variance is that of the sums of units."""
    n = len(values)
    if n == 0:
        return Mean(0, 0.0, math.inf)
    value = sum(values) / n
    sums: dict[str, float] = defaultdict(float)
    for unit, one in zip(units, values, strict=True):
        sums[unit] += one - value
    count = len(sums)
    variance = sum(s * s for s in sums.values()) * count / (count - 1) / n**2 if count > 1 else math.inf
    return shrunk(n, value, variance) if is_share else Mean(n, value, variance)


def compared(
    metric: Metric, incumbent: Mean, candidate: Mean, margin: float, confidence: float
) -> Comparison:
    """Two independent means."""
    if metric in SHARES:
        difference, variance = candidate.value - incumbent.value, candidate.variance + incumbent.variance
    elif incumbent.value > 0:
        ratio = candidate.value / incumbent.value
        difference = ratio - 1
        variance = (candidate.variance + ratio**2 * incumbent.variance) / incumbent.value**2
    else:
        difference = 0.0 if candidate.value == 0 else math.inf
        variance = 0.0
    return judged(metric, incumbent, candidate, difference, variance, margin, confidence)


def paired(
    metric: Metric, pairs: Sequence[tuple[float, float]], margin: float, confidence: float
) -> Comparison:
    """The same queries by both routers: (incumbent, candidate)."""
    n = len(pairs)
    first, second = (_plain_mean([pair[i] for pair in pairs], is_share=metric in SHARES) for i in (0, 1))
    if metric in SHARES or first.value <= 0:
        changes = _plain_mean([b - a for a, b in pairs], is_share=False)
        # a share of changed answers, with one more of each kind
        floor = (sum(a != b for a, b in pairs) + 1) / (n + 2) / (n + 2)
        difference, variance = changes.value, max(changes.variance, floor if metric in SHARES else 0.0)
    else:
        ratio = second.value / first.value
        rest = _plain_mean([(b - ratio * a) / first.value for a, b in pairs], is_share=False)
        difference, variance = ratio - 1, rest.variance
    return judged(metric, first, second, difference, variance, margin, confidence)


def _plain_mean(values: Sequence[float], *, is_share: bool) -> Mean:
    moments = Moments()
    for value in values:
        moments.add(value)
    return moments.estimate(is_share=is_share)


def agreement(is_same: Sequence[bool], margin: float, confidence: float) -> Comparison:
    """The share of answers that are equal to the incumbent's. What agrees cannot be less accurate."""
    same = _plain_mean([float(one) for one in is_same], is_share=True)
    certain = Mean(same.n, 1.0, 0.0)
    return judged("agreement", certain, same, same.value - 1, same.variance, margin, confidence)


def judged(
    metric: Metric,
    incumbent: Mean,
    candidate: Mean,
    difference: float,
    variance: float,
    margin: float,
    confidence: float,
) -> Comparison:
    """The interval of a difference, and what it says."""
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(variance)
    low, high = difference - half, difference + half
    worst, best = (low, high) if metric in BETTER_HIGH else (-high, -low)
    verdict: Verdict = "no worse" if worst >= -margin else "worse" if best < -margin else "open"
    is_enough = min(incumbent.n, candidate.n) >= LEAST_QUERIES
    return Comparison(
        metric=metric,
        num_incumbent=incumbent.n,
        num_candidate=candidate.n,
        incumbent=incumbent.value,
        candidate=candidate.value,
        difference=difference,
        interval=(low, high),
        margin=margin,
        verdict=verdict if is_enough and not math.isnan(low) else "open",
    )


def values_of(trace: Trace) -> dict[Metric, float]:
    """What one trace says of its router; costs and times of answered queries alone."""
    has_failed = trace.error is not None
    has_fallen_back = trace.plan_fallback is not None or trace.allocation_fallback is not None
    found: dict[Metric, float] = {"failures": float(has_failed), "fallbacks": float(has_fallen_back)}
    if not has_failed:
        found |= {"cost": float(trace.cost_usd), "seconds": trace.duration_s}
    return found


def is_evidence(trace: Trace) -> bool:
    """Whether a trace says something of its router: not a query that its client left or sent wrong."""
    name = (trace.error or "").partition(":")[0]
    return name not in _CLIENTS


_CLIENTS = frozenset(
    {"cancelled by the client", "cancelled", "InvalidRequest", "QuotaExceeded"}
    | {"ModelNotFound", "NotAllowed"}
)
"""Errors that the client caused, and the end of a budget."""


def overall(comparisons: Iterable[Comparison]) -> Verdict:
    """The verdict on a candidate.

    It is worse where one metric proves it. Disagreement is no proof, as the other answer may be the better
    one. It is no worse where failures, fallbacks, cost, time and one of score and agreement prove it, and a
    score that is known does not contradict.
    """
    by_metric = {found.metric: found.verdict for found in comparisons}
    if any(verdict == "worse" for metric, verdict in by_metric.items() if metric != "agreement"):
        return "worse"
    needed: tuple[Metric, ...] = ("failures", "fallbacks", "cost", "seconds")
    is_accurate = "no worse" in (by_metric.get("score"), by_metric.get("agreement"))
    proven = is_accurate and all(by_metric.get(metric) == "no worse" for metric in needed)
    return "no worse" if proven else "open"
