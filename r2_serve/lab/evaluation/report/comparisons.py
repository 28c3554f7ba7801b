"""How `r2` stands to each baseline on the same tasks, and what its accuracy costs without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report.policy import PolicyReport
from r2_serve.lab.evaluation.report.results import Results
from r2_serve.lab.statistics import Paired, holm, paired
from r2_serve.types import Record


class Comparison(Paired):
    """`r2` ("ours") compared with one baseline ("theirs") on the same tasks."""

    baseline: str
    holm_p: float
    """McNemar's p-value (over several seeds the bootstrap's), corrected for the number of baselines."""
    total_cost_reduction: float | None
    """1 - cost of r2 / cost of the baseline; None if the baseline costs nothing."""
    api_cost_reduction: float | None


class EqualAccuracy(Record):
    """The cheapest way to r2's accuracy without r2: one baseline, or two mixed at random."""

    mixture: dict[str, float]
    """Share of tasks that each baseline gets."""
    cost_usd: float
    """Cost of all tasks."""
    cost_reduction: float
    """1 - cost of r2 / that cost."""


def find_policy(policies: Sequence[PolicyReport], name: str) -> PolicyReport | None:
    return next((policy for policy in policies if policy.policy == name), None)


def comparisons_of(
    policies: Sequence[PolicyReport], results: Results, margin: float
) -> tuple[Comparison, ...]:
    """`r2` against each other policy; none without `r2`."""
    ours = find_policy(policies, R2)
    if ours is None:
        return ()
    others = [policy for policy in policies if policy is not ours]
    found = {other.policy: compared(results, R2, results, other.policy, margin) for other in others}
    corrected = holm({name: p_value(pair) for name, pair in found.items()})
    return tuple(
        Comparison(
            **dict(found[other.policy]),
            baseline=other.policy,
            holm_p=corrected[other.policy],
            total_cost_reduction=_reduction(ours.total_cost_usd, other.total_cost_usd),
            api_cost_reduction=_reduction(ours.api_cost_usd, other.api_cost_usd),
        )
        for other in others
    )


def compared(ours: Results, policy: str, theirs: Results, other: str, margin: float) -> Paired:
    """Two policies of one run or of two, on the tasks that both runs have."""
    tasks = ours.tasks_with(theirs)
    return paired(
        ours.right(policy, tasks),
        theirs.right(other, tasks),
        ours.cost_usd(policy, tasks),
        theirs.cost_usd(other, tasks),
        margin,
    )


def p_value(pair: Paired) -> float:
    """McNemar's p-value, or the bootstrap's where answers are means over seeds."""
    return pair.bootstrap_p if pair.mcnemar_p is None else pair.mcnemar_p


def cheapest_rival(comparisons: Sequence[Comparison], margin: float) -> Comparison | None:
    """The baseline that is cheapest in total among those at most `margin` less accurate than `r2`.

    The difference is that of the point estimates, so that few tasks do not hide a rival.
    """
    near = [c for c in comparisons if c.accuracy_difference <= margin + 1e-9 and c.cost_ratio is not None]
    return max(near, key=lambda c: c.cost_ratio or 0.0, default=None)


def _reduction(ours: Decimal, theirs: Decimal) -> float | None:
    return float(1 - ours / theirs) if theirs else None


def pareto(policies: Sequence[PolicyReport]) -> tuple[str, ...]:
    """The policies that no other beats in accuracy or cost without losing in the other, cheapest first.

    A policy that gets nothing right is not among them, however cheap it is.
    """
    best: list[PolicyReport] = []
    for policy in sorted(policies, key=lambda p: (p.total_cost_usd, -p.accuracy)):
        if policy.accuracy > (best[-1].accuracy if best else 0.0):
            best.append(policy)
    return tuple(policy.policy for policy in best)


CostOf = Callable[[PolicyReport], Decimal]


def at_equal_accuracy(policies: Sequence[PolicyReport], cost_of: CostOf) -> EqualAccuracy | None:
    """The cheapest mixture of at most two baselines that has r2's accuracy.

    A baseline that gets nothing right is not mixed in: that would mean leaving tasks out.
    """
    ours = find_policy(policies, R2)
    if ours is None:
        return None
    others = [policy for policy in policies if policy.policy != R2 and policy.accuracy > 0]
    mixtures = _mixtures(ours.accuracy, others, cost_of)
    cost, mixture = min(mixtures, key=lambda item: item[0], default=(0.0, {}))
    if not cost:
        return None
    return EqualAccuracy(mixture=mixture, cost_usd=cost, cost_reduction=1 - float(cost_of(ours)) / cost)


def _mixtures(
    accuracy: float, others: Sequence[PolicyReport], cost_of: CostOf
) -> Iterator[tuple[float, dict[str, float]]]:
    for high in (policy for policy in others if policy.accuracy >= accuracy):
        yield float(cost_of(high)), {high.policy: 1.0}
        for low in (policy for policy in others if policy.accuracy < accuracy):
            share = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
            cost = share * float(cost_of(high)) + (1 - share) * float(cost_of(low))
            yield cost, {high.policy: share, low.policy: 1 - share}
