"""What a router of two checkpoints comes to on tasks: accuracy, and costs over those of a reference.

The reference is everything to the pool's largest model: the whole query at once, or every step of the plans that the run
started with, where no model of the pool could answer a whole query. Costs are exact sums over every call, ratios of means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.types import Message, Record, Sampling
from r2_train.config import AlternateConfig
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.rewards import Reference
from r2_train.stages.tasks import is_correct


class RouterScore(Record):
    """Over all tasks; failed and ungradable ones count as not correct."""

    num_tasks: int
    accuracy: float
    worker_cost_ratio: float
    total_cost_ratio: float
    """The router's own calls included."""
    critical_path_ratio: float
    mean_subtasks: float
    mean_depth: float
    calls_per_query: dict[str, float]
    """By model, decomposer and allocator among them."""
    num_failed: int
    num_plan_fallbacks: int

    def value(self, weights: AlternateConfig) -> float:
        """By which checkpoints are ranked."""
        return (
            self.accuracy
            - weights.cost_weight * self.total_cost_ratio
            - weights.path_weight * self.critical_path_ratio
        )


async def measure(
    pool: ServedPool, tasks: Sequence[Task], grader: Grader, reference: Reference
) -> RouterScore:
    """Every task through the whole router. Raises: SpendLimitReached."""

    async def one(task: Task) -> tuple[Rollout, bool]:
        outcome = await pool.run(f"measure-{task.id}", task.query)
        return outcome, bool(await is_correct(grader, task, outcome.answer))

    results = await map_all(tasks, one, num_at_once=pool.num_at_once)
    outcomes, n = [outcome for outcome, _ in results], len(results)
    plans = [
        outcome.trace.plan
        for outcome in outcomes
        if outcome.trace is not None and outcome.trace.plan is not None
    ]
    calls = Counter(call.model for outcome in outcomes for call in outcome.calls)
    return RouterScore(
        num_tasks=n,
        accuracy=sum(is_right for _, is_right in results) / n,
        worker_cost_ratio=sum(float(outcome.worker_cost_usd) for outcome in outcomes)
        / n
        / reference.cost_usd,
        total_cost_ratio=sum(float(outcome.cost_usd) for outcome in outcomes) / n / reference.cost_usd,
        critical_path_ratio=sum(o.critical_path_tokens for o in outcomes)
        / n
        / max(1.0, reference.critical_path_tokens),
        mean_subtasks=sum(len(plan.subtasks) for plan in plans) / max(1, len(plans)),
        mean_depth=sum(plan.depth for plan in plans) / max(1, len(plans)),
        calls_per_query={model: count / n for model, count in sorted(calls.items())},
        num_failed=sum(outcome.error is not None for outcome in outcomes),
        num_plan_fallbacks=sum(o.trace is not None and o.trace.plan_fallback is not None for o in outcomes),
    )


async def measure_reference(pool: ServedPool, tasks: Sequence[Task], kind: str) -> Reference:
    """Raises: ConfigError where it costs nothing, so that nothing can be divided by it; EngineUnavailable where calls fail."""

    async def whole(task: Task) -> tuple[float, float]:
        reply = await pool.ask(pool.largest, _whole_prompt(pool, task), Sampling(temperature=0.0))
        return float(pool.config.model(pool.largest).cost_usd(reply.usage)), float(
            reply.usage.completion_tokens
        )

    async def same_plan(task: Task) -> tuple[float, float]:
        outcome = await pool.run(f"reference-{task.id}", task.query, policy=f"all:{pool.largest}")
        if outcome.error is not None and not outcome.is_refused:
            raise EngineUnavailable(f"the reference cannot be measured while calls fail: {outcome.error}")
        return float(outcome.worker_cost_usd), float(outcome.critical_path_tokens)

    measured = await map_all(
        tasks, whole if kind == "whole-query" else same_plan, num_at_once=pool.num_at_once
    )
    cost_usd, tokens = (sum(values) / len(measured) for values in zip(*measured, strict=True))
    if cost_usd <= 0:
        raise ConfigError(
            f"the reference, {pool.largest} on everything, costs nothing: give the model a price"
        )
    return Reference(cost_usd=cost_usd, critical_path_tokens=tokens)


def _whole_prompt(pool: ServedPool, task: Task) -> list[Message]:
    return pool.members[pool.largest].codec.render_query([Message(role="user", content=task.query)])
