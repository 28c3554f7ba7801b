"""A run directory as figures: what every policy got right, what it cost, and how far it is from the others.

Accuracy is over *all* tasks of the manifest: failures, unparsed, ungradable and timed-out answers count as
not correct and are listed by status; tasks not run yet are `missing` and count as not correct too. Intervals
are 95 % percentile bootstraps over tasks with a fixed seed, so that the same rows give the same report. Money
is exact `Decimal`; only ratios are floats.

There are two costs. *API* is what hosted models bill; *total* also prices local models as configured, so that
none looks free. Total is split into what the workers cost and what the router's own calls (decompose,
allocate) cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.lab.evaluation.manifest import Manifest, PoolModel
from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.rows import STATUSES, EvalRow, merged, read_rows
from r2_serve.lab.evaluation.runner import read_shares
from r2_serve.lab.runs import RunError
from r2_serve.types import Record, Usage

NUM_RESAMPLES = 10_000
ROUTER_STAGES = ("decompose", "allocate")
Interval = tuple[float, float]
Marks = npt.NDArray[np.int8]
"""1 for each task that was answered correctly, in the order of task ids; shape `(num_tasks,)`."""


class ModelUse(Record):
    """What one model did for one policy."""

    num_calls: int
    usage: Usage
    cost_usd: Decimal
    num_subtasks: int
    """Subtasks that this model answered."""


class PolicyReport(Record):
    """One policy over all tasks."""

    policy: str
    num_tasks: int
    statuses: dict[str, int]
    """Number of tasks by status, `missing` included; they add up to `num_tasks`."""
    accuracy: float
    accuracy_ci95: Interval
    scores: dict[str, float]
    """Means over all tasks of the scores that graders give besides the verdict."""
    api_cost_usd: Decimal
    total_cost_usd: Decimal
    worker_cost_usd: Decimal
    router_cost_usd: Decimal
    num_cost_unknown: int
    """Tasks with a failed request whose cost is unknown."""
    models: dict[str, ModelUse]
    latency_p50_s: float
    latency_p95_s: float
    mean_subtasks: float
    mean_width: float
    mean_depth: float
    num_plan_fallbacks: int
    example_failure: str | None
    """The reason that one task of status `failed` or `error` gives."""

    def share(self, model: str) -> float:
        """The share of subtasks that `model` answered."""
        total = sum(use.num_subtasks for use in self.models.values())
        return self.models[model].num_subtasks / total if total and model in self.models else 0.0


class Comparison(Record):
    """`r2` compared with one baseline on the same tasks."""

    baseline: str
    accuracy_difference: float
    difference_ci95: Interval
    """Paired interval: tasks are resampled together."""
    verdict: Literal["better", "equal", "worse"]
    """The accuracy of `r2`: `equal` if the paired interval holds 0."""
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


class RunReport(Record):
    """One run directory."""

    directory: str
    manifest: Manifest
    policies: tuple[PolicyReport, ...]
    comparisons: tuple[Comparison, ...]
    at_equal_accuracy: EqualAccuracy | None
    """The cheapest by total cost. None without `r2`, or if no baseline is as good, or one is free."""
    at_equal_accuracy_api: EqualAccuracy | None
    """The same by API cost."""
    reference: str
    """The policy whose total cost is 100 %."""
    pareto: tuple[str, ...]
    """Policies that no other beats in both accuracy and total cost, cheapest first."""
    random_shares: dict[str, float] | None

    @property
    def reference_report(self) -> PolicyReport:
        return next(policy for policy in self.policies if policy.policy == self.reference)


def report_of(directory: Path, reference: str | None = None) -> RunReport:
    """Read a run. `reference` is `single:LARGEST` by default, or `cot:LARGEST` if that costs nothing.

    Raises: RunError.
    """
    manifest = Manifest.read(directory)
    by_policy: dict[str, dict[str, EvalRow]] = {name: {} for name in manifest.policies}
    for row in merged(read_rows(directory)).values():
        by_policy[row.policy][row.task_id] = row
    policies = tuple(
        policy_report(name, list(found.values()), manifest.num_tasks, manifest.models)
        for name, found in by_policy.items()
    )
    return RunReport(
        directory=str(directory),
        manifest=manifest,
        policies=policies,
        comparisons=_comparisons(policies, _marks(by_policy, manifest.num_tasks)),
        at_equal_accuracy=_at_equal_accuracy(policies, lambda policy: policy.total_cost_usd),
        at_equal_accuracy_api=_at_equal_accuracy(policies, lambda policy: policy.api_cost_usd),
        reference=_reference(policies, manifest.pool[-1], reference),
        pareto=pareto(policies),
        random_shares=read_shares(directory),
    )


# -- one policy ----------------------------------------------------------------------------------------------


def policy_report(
    name: str, rows: Sequence[EvalRow], num_tasks: int, models: Sequence[PoolModel]
) -> PolicyReport:
    """The figures of one policy; `num_tasks` is the number of all tasks, `models` those that may be asked."""
    counts = Counter[str](row.status for row in rows)
    calls = [call for row in rows for call in row.outcome.calls]
    hosted = {model.name for model in models if model.is_hosted}
    p50, p95 = np.percentile([row.outcome.latency_s for row in rows] or [0.0], [50, 95])
    planned = [row.outcome for row in rows if row.outcome.num_subtasks]
    return PolicyReport(
        policy=name,
        num_tasks=num_tasks,
        statuses={**{status: counts[status] for status in STATUSES}, "missing": num_tasks - len(rows)},
        accuracy=counts["correct"] / num_tasks,
        accuracy_ci95=bootstrap_accuracy(counts["correct"], num_tasks),
        scores=_mean_scores(rows, num_tasks),
        api_cost_usd=total_cost_usd(call for call in calls if call.model in hosted),
        total_cost_usd=total_cost_usd(calls),
        worker_cost_usd=total_cost_usd(call for call in calls if call.stage not in ROUTER_STAGES),
        router_cost_usd=total_cost_usd(call for call in calls if call.stage in ROUTER_STAGES),
        num_cost_unknown=sum(not row.outcome.is_cost_known for row in rows),
        models=_model_uses(rows, models),
        latency_p50_s=float(p50),
        latency_p95_s=float(p95),
        mean_subtasks=_mean([outcome.num_subtasks for outcome in planned]),
        mean_width=_mean([outcome.width for outcome in planned]),
        mean_depth=_mean([outcome.depth for outcome in planned]),
        num_plan_fallbacks=sum(row.outcome.is_plan_fallback for row in rows),
        example_failure=next((row.detail for row in rows if row.status in ("failed", "error")), None),
    )


def _model_uses(rows: Sequence[EvalRow], models: Sequence[PoolModel]) -> dict[str, ModelUse]:
    """The models that were called, in the order of `models`."""
    subtasks = Counter(model for row in rows for model in row.outcome.subtask_models)
    uses: dict[str, ModelUse] = {}
    for name in (model.name for model in models):
        calls = [call for row in rows for call in row.outcome.calls if call.model == name]
        if calls:
            usage = sum((call.usage for call in calls), Usage())
            uses[name] = ModelUse(
                num_calls=len(calls),
                usage=usage,
                cost_usd=total_cost_usd(calls),
                num_subtasks=subtasks[name],
            )
    return uses


def _mean_scores(rows: Sequence[EvalRow], num_tasks: int) -> dict[str, float]:
    names = sorted({name for row in rows for name in row.scores})
    return {name: sum(row.scores.get(name, 0.0) for row in rows) / num_tasks for name in names}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# -- intervals -----------------------------------------------------------------------------------------------


def bootstrap_accuracy(num_correct: int, num_tasks: int) -> Interval:
    """95 % percentile bootstrap. A resample of n marks holds Binomial(n, p) correct ones and is drawn so.

    If none or all are correct, every resample is alike, which is no certainty: then Wilson's interval is
    given.
    """
    if num_correct in (0, num_tasks):
        return wilson(num_correct, num_tasks)
    draws = np.random.default_rng(0).binomial(num_tasks, num_correct / num_tasks, NUM_RESAMPLES) / num_tasks
    return _percentiles(draws)


def bootstrap_difference(ours: Marks, theirs: Marks) -> Interval:
    """The same for the difference of two accuracies on the same tasks: each task is +1, 0 or -1.

    If all tasks differ alike, Wilson's bound on their share is given, with the other tasks taken as ties; if
    all are ties, the others are taken as wins and losses.
    """
    difference = ours.astype(int) - theirs
    n = len(difference)
    if (difference == difference[0]).all():
        share, _ = wilson(n, n)
        return {1: (share, 1.0), -1: (-1.0, -share), 0: (share - 1, 1 - share)}[int(difference[0])]
    shares = [np.mean(difference == value) for value in (1, -1, 0)]
    draws = np.random.default_rng(0).multinomial(n, shares, NUM_RESAMPLES)
    return _percentiles((draws[:, 0] - draws[:, 1]) / n)


def wilson(num_correct: int, num_tasks: int) -> Interval:
    """95 % confidence interval of a proportion. Source: Wilson (1927), JASA 22."""
    z, n, p = 1.959964, num_tasks, num_correct / num_tasks
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)


def _percentiles(draws: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


# -- policies compared ---------------------------------------------------------------------------------------


def _marks(by_policy: dict[str, dict[str, EvalRow]], num_tasks: int) -> dict[str, Marks]:
    """The marks of each policy; tasks that no policy has begun are 0 for all."""
    ids = sorted({task_id for rows in by_policy.values() for task_id in rows})
    marks = {name: np.zeros(num_tasks, dtype=np.int8) for name in by_policy}
    for name, rows in by_policy.items():
        marks[name][: len(ids)] = [task_id in rows and rows[task_id].status == "correct" for task_id in ids]
    return marks


def _comparisons(policies: Sequence[PolicyReport], marks: dict[str, Marks]) -> tuple[Comparison, ...]:
    ours = find_policy(policies, R2)
    if ours is None:
        return ()
    return tuple(_comparison(ours, other, marks) for other in policies if other is not ours)


def find_policy(policies: Sequence[PolicyReport], name: str) -> PolicyReport | None:
    return next((policy for policy in policies if policy.policy == name), None)


def _comparison(ours: PolicyReport, other: PolicyReport, marks: dict[str, Marks]) -> Comparison:
    low, high = bootstrap_difference(marks[ours.policy], marks[other.policy])
    return Comparison(
        baseline=other.policy,
        accuracy_difference=ours.accuracy - other.accuracy,
        difference_ci95=(low, high),
        verdict="better" if low > 0 else "worse" if high < 0 else "equal",
        total_cost_reduction=_reduction(ours.total_cost_usd, other.total_cost_usd),
        api_cost_reduction=_reduction(ours.api_cost_usd, other.api_cost_usd),
    )


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


def _reference(policies: Sequence[PolicyReport], largest: str, asked: str | None) -> str:
    """Raises: RunError if the run has no policy of the name that was asked for."""
    names = [policy.policy for policy in policies]
    if asked is not None:
        if asked not in names:
            raise RunError(f"no policy {asked!r} in the run to refer costs to; it has {', '.join(names)}")
        return asked
    costly = [policy.policy for policy in policies if policy.total_cost_usd]
    usual = [name for name in (f"single:{largest}", f"cot:{largest}") if name in costly]
    return usual[0] if usual else max(policies, key=lambda policy: policy.total_cost_usd).policy


CostOf = Callable[[PolicyReport], Decimal]


def _at_equal_accuracy(policies: Sequence[PolicyReport], cost_of: CostOf) -> EqualAccuracy | None:
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
