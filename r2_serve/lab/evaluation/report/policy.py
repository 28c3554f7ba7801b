"""The figures of one policy: what it got right and what it cost, from its rows.

Accuracy is over *all* tasks of the manifest: failures, unparsed, ungradable and timed-out answers count as
not correct and are listed by status; tasks not run yet are `missing` and count as not correct too. Money is
exact `Decimal`; only ratios are floats.

There are two costs. *API* is what hosted models bill; *total* also prices local models as configured, so that
none looks free. Total is split into what the workers cost and what the router's own calls (decompose,
allocate) cost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.lab.evaluation.manifest import PoolModel
from r2_serve.lab.evaluation.rows import STATUSES, EvalRow
from r2_serve.lab.statistics import Floats, Interval, mean_interval
from r2_serve.types import Record, Usage

ROUTER_STAGES = ("decompose", "allocate")


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
    """Answers that were wanted: the tasks, times the seeds."""
    statuses: dict[str, int]
    """Number of tasks by status, `missing` included; they add up to `num_tasks`."""
    accuracy: float
    accuracy_by_seed: tuple[float, ...] = ()
    """The accuracy under each seed, where a report has several."""
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
    """Median over the tasks without a reply from the book, whose latency is not measured; else NaN."""
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


def policy_report(
    name: str, seeds: Sequence[Sequence[EvalRow]], num_tasks: int, models: Sequence[PoolModel]
) -> PolicyReport:
    """The figures of one policy, whose rows under each seed are in `seeds`.

    `num_tasks` is the number of all tasks under one seed, `models` those that may be asked.
    """
    rows = [row for some in seeds for row in some]
    num_answers = num_tasks * len(seeds)
    by_seed = tuple(sum(row.status == "correct" for row in some) / num_tasks for some in seeds)
    counts = Counter[str](row.status for row in rows)
    calls = [call for row in rows for call in row.outcome.calls]
    hosted = {model.name for model in models if model.is_hosted}
    times = [row.outcome.latency_s for row in rows if not row.outcome.num_reused]
    p50, p95 = np.percentile(times or [math.nan], [50, 95])
    planned = [row.outcome for row in rows if row.outcome.num_subtasks]
    return PolicyReport(
        policy=name,
        num_tasks=num_answers,
        statuses={**{status: counts[status] for status in STATUSES}, "missing": num_answers - len(rows)},
        accuracy=counts["correct"] / num_answers,
        accuracy_by_seed=by_seed if len(seeds) > 1 else (),
        accuracy_ci95=mean_interval(_shares_right(rows, num_tasks, len(seeds))),
        scores=_mean_scores(rows, num_answers),
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


def _shares_right(rows: Sequence[EvalRow], num_tasks: int, num_seeds: int) -> Floats:
    """The share of right answers to each task over the seeds; tasks not begun are 0."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.task_id] += row.status == "correct"
    shares = np.zeros(num_tasks)
    shares[: len(counts)] = sorted(counts.values())
    return shares / num_seeds


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
