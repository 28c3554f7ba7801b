"""A run directory as figures: what every policy got right, what it cost, and how far it is from the others.

Accuracy is over *all* tasks of the manifest: failures, unparsed, ungradable and timed-out ones count as not correct and
are listed by status; tasks not run yet are `missing` and count as not correct too. Intervals are 95 % percentile bootstraps over
tasks with a fixed seed, so that the same rows give the same report. Money is exact `Decimal`; only ratios are floats.

Two costs: *API* is what hosted models bill, *total* prices local models as configured too, so that "free" is never an
illusion. Total is split into what the workers cost and what the router's own calls (decompose, allocate) cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from r2_serve.lab.evaluation.manifest import Manifest
from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.rows import STATUSES, EvalRow, merged, read_rows
from r2_serve.lab.evaluation.runner import read_shares
from r2_serve.lab.runs import RunError
from r2_serve.types import CallRecord, Record, Usage

NUM_RESAMPLES = 10_000
ROUTER_STAGES = ("decompose", "allocate")
Interval = tuple[float, float]
Marks = npt.NDArray[np.int8]
"""1 where a task was answered correctly, in the order of task ids."""


class ModelUse(Record):
    """What one model did for one policy."""

    num_calls: int
    usage: Usage
    cost_usd: Decimal
    num_subtasks: int
    """Whose answer was this model's."""


class PolicyReport(Record):
    """One policy over all tasks."""

    policy: str
    num_tasks: int
    statuses: dict[str, int]
    """Every status, `missing` among them; they add up to `num_tasks`."""
    accuracy: float
    accuracy_ci95: Interval
    scores: dict[str, float]
    """Means of what graders give beside the verdict, over all tasks."""
    api_cost_usd: Decimal
    total_cost_usd: Decimal
    worker_cost_usd: Decimal
    router_cost_usd: Decimal
    num_cost_unknown: int
    """Tasks with a failed request that did not tell its cost."""
    models: dict[str, ModelUse]
    latency_p50_s: float
    latency_p95_s: float
    mean_subtasks: float
    mean_width: float
    mean_depth: float
    num_plan_fallbacks: int
    example_failure: str | None
    """What one task of status `failed` or `error` says for itself."""

    def share(self, model: str) -> float:
        """Of the subtasks."""
        total = sum(use.num_subtasks for use in self.models.values())
        return self.models[model].num_subtasks / total if total and model in self.models else 0.0


class Comparison(Record):
    """`r2` beside one baseline, on the same tasks."""

    baseline: str
    accuracy_difference: float
    difference_ci95: Interval
    """Paired: tasks are resampled together."""
    verdict: Literal["better", "equal", "worse"]
    """`r2` in accuracy: equal where the paired interval holds 0. A cost reduction at `worse` is not at equal accuracy."""
    total_cost_reduction: float | None
    """1 - cost of r2 / cost of the baseline; None where the baseline costs nothing."""
    api_cost_reduction: float | None


class EqualAccuracy(Record):
    """The cheapest way to r2's accuracy without r2: one baseline, or two mixed at random."""

    mixture: dict[str, float]
    """Share of tasks to each baseline."""
    cost_usd: float
    """Of all tasks."""
    cost_reduction: float
    """1 - cost of r2 / that cost."""


class RunReport(Record):
    """One run directory."""

    directory: str
    manifest: Manifest
    policies: tuple[PolicyReport, ...]
    comparisons: tuple[Comparison, ...]
    at_equal_accuracy: EqualAccuracy | None
    """In total cost. None without `r2`, or where no baseline gets as much right, or one does for nothing."""
    at_equal_accuracy_api: EqualAccuracy | None
    """In API cost."""
    reference: str
    """The policy that others' total costs are told relative to."""
    pareto: tuple[str, ...]
    """Policies that no other beats in both accuracy and total cost, cheapest first."""
    random_shares: dict[str, float] | None

    @property
    def is_complete(self) -> bool:
        return all(policy.statuses.get("missing", 0) == 0 for policy in self.policies)


def report_of(directory: Path, reference: str | None = None) -> RunReport:
    """`reference` by default: `single:LARGEST`, or `cot:LARGEST` where that costs nothing. Raises: RunError."""
    manifest = Manifest.read(directory)
    rows = merged(read_rows(directory))
    by_policy: dict[str, dict[str, EvalRow]] = {name: {} for name in manifest.policies}
    for row in rows.values():
        by_policy[row.policy][row.task_id] = row
    policies = tuple(
        _policy_report(name, list(found.values()), manifest) for name, found in by_policy.items()
    )
    marks = {name: _marks(found, by_policy, manifest.num_tasks) for name, found in by_policy.items()}
    return RunReport(
        directory=str(directory),
        manifest=manifest,
        policies=policies,
        comparisons=_comparisons(policies, marks),
        at_equal_accuracy=_at_equal_accuracy(policies, lambda policy: policy.total_cost_usd),
        at_equal_accuracy_api=_at_equal_accuracy(policies, lambda policy: policy.api_cost_usd),
        reference=_reference(policies, manifest.pool[-1], reference),
        pareto=pareto(policies),
        random_shares=read_shares(directory),
    )


# -- one policy ---------------------------------------------------------------------------------------------------


def _policy_report(name: str, rows: Sequence[EvalRow], manifest: Manifest) -> PolicyReport:
    counts = Counter[str](row.status for row in rows)
    statuses: dict[str, int] = {
        **{status: counts[status] for status in STATUSES},
        "missing": manifest.num_tasks - len(rows),
    }
    calls = [call for row in rows for call in row.outcome.calls]
    hosted = {model.name for model in manifest.models if model.is_hosted}
    latencies = [row.outcome.latency_s for row in rows] or [0.0]
    planned = [row.outcome for row in rows if row.outcome.num_subtasks]
    return PolicyReport(
        policy=name,
        num_tasks=manifest.num_tasks,
        statuses=statuses,
        accuracy=statuses["correct"] / manifest.num_tasks,
        accuracy_ci95=bootstrap_accuracy(statuses["correct"], manifest.num_tasks),
        scores=_mean_scores(rows, manifest.num_tasks),
        api_cost_usd=_cost(call for call in calls if call.model in hosted),
        total_cost_usd=_cost(calls),
        worker_cost_usd=_cost(call for call in calls if call.stage not in ROUTER_STAGES),
        router_cost_usd=_cost(call for call in calls if call.stage in ROUTER_STAGES),
        num_cost_unknown=sum(not row.outcome.is_cost_known for row in rows),
        models=_model_uses(rows, [model.name for model in manifest.models]),
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p95_s=float(np.percentile(latencies, 95)),
        mean_subtasks=_mean([outcome.num_subtasks for outcome in planned]),
        mean_width=_mean([outcome.width for outcome in planned]),
        mean_depth=_mean([outcome.depth for outcome in planned]),
        num_plan_fallbacks=sum(row.outcome.is_plan_fallback for row in rows),
        example_failure=next((row.detail for row in rows if row.status in ("failed", "error")), None),
    )


def _model_uses(rows: Sequence[EvalRow], order: Sequence[str]) -> dict[str, ModelUse]:
    calls: dict[str, list[CallRecord]] = {}
    for call in (call for row in rows for call in row.outcome.calls):
        calls.setdefault(call.model, []).append(call)
    subtasks = Counter(model for row in rows for model in row.outcome.subtask_models)
    return {
        model: ModelUse(
            num_calls=len(calls[model]),
            usage=_usage(calls[model]),
            cost_usd=_cost(calls[model]),
            num_subtasks=subtasks[model],
        )
        for model in order
        if model in calls
    }


def _usage(calls: Sequence[CallRecord]) -> Usage:
    prompt, completion = (
        sum(getattr(call.usage, name) for call in calls) for name in ("prompt_tokens", "completion_tokens")
    )
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _cost(calls: Iterable[CallRecord]) -> Decimal:
    return sum((call.cost_usd for call in calls), Decimal(0))


def _mean_scores(rows: Sequence[EvalRow], num_tasks: int) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row.scores)
    return {name: float(total) / num_tasks for name, total in sorted(totals.items())}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# -- intervals ----------------------------------------------------------------------------------------------------


def bootstrap_accuracy(num_correct: int, num_tasks: int) -> Interval:
    """95 % percentile bootstrap. A resample of n marks holds Binomial(n, p) correct ones, so it is drawn as that.

    Where none or all are correct every resample is alike, which is no certainty: there Wilson's interval stands in.
    """
    if num_correct in (0, num_tasks):
        return _wilson(num_correct, num_tasks)
    draws = np.random.default_rng(0).binomial(num_tasks, num_correct / num_tasks, NUM_RESAMPLES) / num_tasks
    return _percentiles(draws)


def bootstrap_difference(ours: Marks, theirs: Marks) -> Interval:
    """The same for the difference of two accuracies on the same tasks: each task is +1, 0 or -1.

    Where all tasks differ alike, Wilson's bound on the share of those that do stands in, the others taken as ties, or as wins
    and losses where all were ties.
    """
    difference = ours.astype(int) - theirs
    n = len(difference)
    if (difference == difference[0]).all():
        share, _ = _wilson(n, n)
        return {1: (share, 1.0), -1: (-1.0, -share), 0: (share - 1, 1 - share)}[int(difference[0])]
    shares = [np.mean(difference == value) for value in (1, -1, 0)]
    draws = np.random.default_rng(0).multinomial(n, shares, NUM_RESAMPLES)
    return _percentiles((draws[:, 0] - draws[:, 1]) / n)


def _wilson(num_correct: int, num_tasks: int) -> Interval:
    """Source: Wilson (1927), JASA 22."""
    z, n, p = 1.959964, num_tasks, num_correct / num_tasks
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)


def _percentiles(draws: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


# -- policies beside each other -----------------------------------------------------------------------------------


def _marks(rows: dict[str, EvalRow], by_policy: dict[str, dict[str, EvalRow]], num_tasks: int) -> Marks:
    """Tasks that no policy has begun are 0 for all."""
    ids = sorted({task_id for found in by_policy.values() for task_id in found})
    marks = np.zeros(num_tasks, dtype=np.int8)
    marks[: len(ids)] = [task_id in rows and rows[task_id].status == "correct" for task_id in ids]
    return marks


def _comparisons(policies: Sequence[PolicyReport], marks: dict[str, Marks]) -> tuple[Comparison, ...]:
    ours = next((policy for policy in policies if policy.policy == R2), None)
    if ours is None:
        return ()
    return tuple(_comparison(ours, other, marks) for other in policies if other is not ours)


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
    """Names of the policies than which none is both as accurate and as cheap, and better in one; cheapest first.

    One that gets nothing right is none, however cheap.
    """
    best: list[PolicyReport] = []
    for policy in sorted(policies, key=lambda p: (p.total_cost_usd, -p.accuracy)):
        if policy.accuracy > (best[-1].accuracy if best else 0.0):
            best.append(policy)
    return tuple(policy.policy for policy in best)


def _reference(policies: Sequence[PolicyReport], largest: str, asked: str | None) -> str:
    """Raises: RunError where the run has no policy of the name that was asked for."""
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
    """Any two baselines mixed so as to have r2's accuracy; the cheapest such mixture. A lone baseline is one, too.

    None of them gets nothing right: to mix that in would be to leave tasks out.
    """
    ours = next((policy for policy in policies if policy.policy == R2), None)
    if ours is None:
        return None
    others = [policy for policy in policies if policy.policy != R2 and policy.accuracy > 0]
    mixtures = list(_mixtures(ours.accuracy, others, cost_of))
    if not mixtures:
        return None
    cost, mixture = min(mixtures, key=lambda item: item[0])
    return (
        EqualAccuracy(mixture=mixture, cost_usd=cost, cost_reduction=1 - float(cost_of(ours)) / cost)
        if cost
        else None
    )


def _mixtures(
    accuracy: float, others: Sequence[PolicyReport], cost_of: CostOf
) -> Iterator[tuple[float, dict[str, float]]]:
    for high in (policy for policy in others if policy.accuracy >= accuracy):
        yield float(cost_of(high)), {high.policy: 1.0}
        for low in (policy for policy in others if policy.accuracy < accuracy):
            share = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
            cost = share * float(cost_of(high)) + (1 - share) * float(cost_of(low))
            yield cost, {high.policy: share, low.policy: 1 - share}
