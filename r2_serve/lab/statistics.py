"""The statistics of every comparison in the laboratory: `eval report`, `eval compare` and `replay`.

All of it is *paired*: two policies answered the same tasks, and a task is resampled with all that is known of
it. The intervals are 95 % percentile bootstraps with a fixed seed, so the same rows give the same figures.
McNemar's test counts the tasks that one policy alone gets right. Whether a policy is *not worse* is tested
against a margin that is stated, since an interval that holds 0 is no evidence of equality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from r2_serve.types import Record

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
"""Lower and upper bound of a 95 % confidence interval."""
Verdict = Literal["better", "not worse", "worse", "undecided"]
NUM_RESAMPLES, _ROWS_AT_ONCE = 4_000, 200
"""Resamples of the tasks, and how many of them are multiplied at once, so that large runs fit in memory."""
MARGIN = 0.01
"""The accuracy that a policy may lose and still be called not worse: one point."""
_LEVEL = 0.025
"""The level of one-sided tests, so that they agree with 95 % intervals of two sides."""
_Z = 1.959964


class Paired(Record):
    """One policy ("ours") compared with another ("theirs") on the same tasks."""

    num_tasks: int
    accuracy_difference: float
    """Ours minus theirs, a fraction."""
    accuracy_difference_ci95: Interval
    wins: float
    """The tasks that ours alone gets right. Over several seeds it is the sum of what ours gets more."""
    losses: float
    mcnemar_p: float | None
    """The exact two-sided p-value of "both are equally accurate"; None over several seeds."""
    bootstrap_p: float
    """The two-sided p-value of the same, from the bootstrap; it also holds over several seeds."""
    margin: float
    not_worse_p: float
    """The one-sided p-value of "ours is worse by the margin or more"; small means not worse."""
    verdict: Verdict
    """`better`: the interval lies above 0. `not worse`: the loss is proven to be below the margin. `worse`:
    the interval lies below 0. `undecided`: the tasks are too few to tell."""
    cost_difference_usd: float
    """Ours minus theirs, for one task."""
    cost_difference_ci95_usd: Interval
    cost_p: float
    """The two-sided bootstrap p-value of "both cost the same"."""
    cost_ratio: float | None
    """Ours divided by theirs; None if theirs costs nothing."""
    cost_ratio_ci95: Interval | None


def paired(
    right: Floats, others: Floats, cost_usd: Floats, other_cost_usd: Floats, margin: float = MARGIN
) -> Paired:
    """Compare two policies, task by task; the arrays have one value for each task, in one order.

    `right` and `others` are 1 or 0, or shares of right answers over several seeds or splits.
    """
    difference = right - others
    accuracy_ci95 = difference_interval(right, others)
    is_binary = bool(np.isin(difference, (-1.0, 0.0, 1.0)).all())
    draws, cost_draws = resampled_means(difference), resampled_means(cost_usd - other_cost_usd)
    wins, losses = float(difference.clip(min=0).sum()), float((-difference).clip(min=0).sum())
    tested = not_worse_p(right, others, margin) if is_binary else _share(draws <= -margin)
    return Paired(
        num_tasks=len(right),
        accuracy_difference=float(difference.mean()),
        accuracy_difference_ci95=accuracy_ci95,
        wins=wins,
        losses=losses,
        mcnemar_p=mcnemar_p(int(wins), int(losses)) if is_binary else None,
        bootstrap_p=_two_sided(draws),
        margin=margin,
        not_worse_p=tested,
        verdict=_verdict(accuracy_ci95, tested),
        cost_difference_usd=float((cost_usd - other_cost_usd).mean()),
        cost_difference_ci95_usd=_percentiles(cost_draws),
        cost_p=_two_sided(cost_draws),
        cost_ratio=_ratio(float(cost_usd.mean()), float(other_cost_usd.mean())),
        cost_ratio_ci95=ratio_interval(cost_usd, other_cost_usd),
    )


def _verdict(bounds: Interval, tested: float) -> Verdict:
    if bounds[0] > 0:
        return "better"
    if tested < _LEVEL:
        return "not worse"
    return "worse" if bounds[1] < 0 else "undecided"


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None


# -- intervals -----------------------------------------------------------------------------------------------


def mean_interval(values: Floats) -> Interval:
    """The interval of a mean over tasks; if all values are 0, or all 1, Wilson's.

    All resamples are equal then, which does not make the mean certain.
    """
    if len(values) and (values == values[0]).all() and values[0] in (0.0, 1.0):
        return wilson(int(values.sum()), len(values))
    return bootstrap_interval(values)


def bootstrap_interval(values: Floats) -> Interval:
    """The interval of a mean of any values, such as one figure over several seeds."""
    return _percentiles(resampled_means(values))


def difference_interval(values: Floats, others: Floats) -> Interval:
    """The interval of the mean of paired differences of accuracies.

    If all tasks differ by one amount, Wilson's bound on their share is given, with the other tasks taken as
    ties; if all are ties, the others are taken as wins and losses.
    """
    difference = values - others
    if (difference == difference[0]).all() and difference[0] in (-1.0, 0.0, 1.0):
        share, _ = wilson(len(difference), len(difference))
        return {1: (share, 1.0), -1: (-1.0, -share), 0: (share - 1, 1 - share)}[int(difference[0])]
    return _percentiles(resampled_means(difference))


def ratio_interval(values: Floats, others: Floats) -> Interval | None:
    """The interval of a ratio of two means over the same tasks; None if a resample has none."""
    below = resampled_means(others)
    if (below <= 0).any():
        return None
    return _percentiles(resampled_means(values) / below)


def normal_interval(differences: Floats) -> Interval:
    """The interval of a mean of paired differences by the normal distribution."""
    half = _Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()) - half, float(differences.mean()) + half


def wilson(num_correct: int, num_tasks: int) -> Interval:
    """95 % confidence interval of a proportion. Source: Wilson (1927), JASA 22."""
    n, p = num_tasks, num_correct / num_tasks
    center = (p + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n)) / (1 + _Z * _Z / n)
    return max(0.0, center - half), min(1.0, center + half)


def resampled_means(values: Floats) -> Floats:
    """The mean of each resample, `(NUM_RESAMPLES,)`. Arrays of one length stay paired: their resamples are
    the same."""
    counts = _counts(len(values))
    parts = np.split(counts, range(_ROWS_AT_ONCE, len(counts), _ROWS_AT_ONCE))
    return np.concatenate([part.astype(np.float64) @ values for part in parts]) / len(values)


@lru_cache(maxsize=2)
def _counts(size: int) -> npt.NDArray[np.uint8]:
    """How often each task stands in each resample, `(NUM_RESAMPLES, size)`."""
    rng = np.random.default_rng(0)
    draws = (np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(NUM_RESAMPLES))
    return np.stack([draw.astype(np.uint8) for draw in draws])


def _percentiles(draws: Floats) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


# -- tests ---------------------------------------------------------------------------------------------------


def mcnemar_p(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test (Psychometrika 12, 1947): wins are Binomial(n, 1/2)."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def not_worse_p(right: Floats, others: Floats, margin: float) -> float:
    """The p-value of "the accuracy is at least `margin` below the other's"; small means not worse.

    Source: Tango's score test of paired shares (Statistics in Medicine 17, 1998), equations 10 to 12, with a
    lower limit of -`margin`.
    """
    n = len(right)
    wins = float(((right > 0.5) & (others < 0.5)).sum())
    losses = float(((right < 0.5) & (others > 0.5)).sum())
    share = _losses_at_limit(n, wins, losses, margin)
    variance = n * (2 * share - margin * (margin + 1))
    if variance <= 0:
        return 0.0 if wins - losses + n * margin > 0 else 1.0
    return 1 - NormalDist().cdf((wins - losses + n * margin) / math.sqrt(variance))


def _losses_at_limit(n: int, wins: float, losses: float, margin: float) -> float:
    """The most likely share of losses if the difference is exactly -`margin`."""
    b = -wins - losses - (2 * n - wins + losses) * margin
    c = losses * margin * (1 + margin)
    return (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, corrected by Holm's step-down method (Scandinavian J. Stat. 6, 1979)."""
    found: dict[str, float] = {}
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(found.values(), default=0.0)
        found[name] = min(1.0, max(least, (len(p_values) - rank) * p_values[name]))
    return {name: found[name] for name in p_values}


def _two_sided(draws: Floats) -> float:
    """The two-sided p-value of "the mean is 0": the smallest level whose interval leaves 0 out."""
    return min(1.0, 2 * min(_share(draws <= 0), _share(draws >= 0)))


def _share(holds: npt.NDArray[np.bool_]) -> float:
    """The share of resamples in which something holds; never 0, as their number is finite."""
    return (float(holds.sum()) + 1) / (len(holds) + 1)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
