"""Measures a router of two checkpoints on tasks: its accuracy, and its costs relative to a reference.

The reference gives everything to the pool's largest model: the whole query at once, or every step of the
run's first plans, if no model of the pool can answer a whole query. Costs are exact sums over all calls;
ratios are ratios of means.
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
from r2_train.stages.rows import Outages
from r2_train.stages.tasks import verdict

NOTHING_CARRIED_OUT = (
    "no plan of the decomposer could be carried out. Train it longer (`decomposer.sft`), or show it examples "
    "(`examples` in the file of `prompts`)"
)


class RouterScore(Record):
    """A router's figures. Costs and paths are means over all tasks."""

    num_tasks: int
    accuracy: float
    """Share of right answers among the tasks with a verdict: failed calls give none, and neither does a
    grader that cannot tell."""
    worker_cost_ratio: float
    total_cost_ratio: float
    """Cost of the workers and of the router's own calls, over the reference's cost."""
    critical_path_ratio: float
    mean_subtasks: float
    mean_depth: float
    calls_per_query: dict[str, float]
    """Mean number of calls to each model, with the decomposer and the allocator."""
    num_failed: int
    """Tasks without a verdict, because calls failed."""
    num_plan_fallbacks: int

    def value(self, weights: AlternateConfig) -> float:
        """The number that checkpoints are ranked by; higher is better."""
        cost, path = self.total_cost_ratio, self.critical_path_ratio
        return self.accuracy - weights.cost_weight * cost - weights.path_weight * path


async def measure(
    pool: ServedPool, tasks: Sequence[Task], grader: Grader, reference: Reference
) -> RouterScore:
    """Runs every task through the whole router.

    Raises: SpendLimitReached; EngineUnavailable if calls of too many tasks failed to rank routers by the
    others. The same command asks again for what failed.
    """

    async def one(task: Task) -> tuple[Rollout, bool | None]:
        rollout = await pool.run(f"measure-{task.id}", task.query)
        return rollout, await verdict(grader, task, rollout)

    results = await map_all(tasks, one, num_at_once=pool.num_at_once)
    rollouts, n = [rollout for rollout, _ in results], len(results)
    outages = Outages()
    for rollout in rollouts:
        outages.count(rollout.failure)
    outages.check(least=1)
    verdicts = [is_right for _, is_right in results if is_right is not None]
    plans = [rollout.plan for rollout in rollouts if rollout.plan is not None]
    traces = [rollout.trace for rollout in rollouts if rollout.trace is not None]
    calls = Counter(call.model for rollout in rollouts for call in rollout.calls)
    worker_cost = sum(float(rollout.worker_cost_usd) for rollout in rollouts)
    total_cost = sum(float(rollout.cost_usd) for rollout in rollouts)
    path_tokens = sum(rollout.critical_path_tokens for rollout in rollouts)
    return RouterScore(
        num_tasks=n,
        accuracy=sum(verdicts) / max(1, len(verdicts)),
        worker_cost_ratio=worker_cost / n / reference.cost_usd,
        total_cost_ratio=total_cost / n / reference.cost_usd,
        critical_path_ratio=reference.path_ratio(path_tokens / n),
        mean_subtasks=sum(len(plan.subtasks) for plan in plans) / max(1, len(plans)),
        mean_depth=sum(plan.depth for plan in plans) / max(1, len(plans)),
        calls_per_query={model: count / n for model, count in sorted(calls.items())},
        num_failed=outages.num_failed,
        num_plan_fallbacks=sum(trace.plan_fallback is not None for trace in traces),
    )


async def measure_reference(pool: ServedPool, tasks: Sequence[Task], kind: str) -> Reference:
    """The reference's means over `tasks`; `kind` is `whole-query` or `same-plans`.

    Raises: ConfigError if the reference costs nothing, as nothing can be divided by it: it has no price, or
    no plan was carried out; EngineUnavailable if calls fail.
    """

    async def whole_query(task: Task) -> tuple[float, int]:
        query = [Message(role="user", content=task.query)]
        prompt = pool.members[pool.largest].codec.render_query(query)
        usage = (await pool.ask(pool.largest, prompt, Sampling(temperature=0.0))).usage
        return float(pool.config.model(pool.largest).cost_usd(usage)), usage.completion_tokens

    async def same_plan(task: Task) -> tuple[float, int]:
        rollout = await pool.run(f"reference-{task.id}", task.query, policy=f"all:{pool.largest}")
        if rollout.has_failed:
            raise EngineUnavailable(f"the reference cannot be measured while calls fail: {rollout.error}")
        return float(rollout.worker_cost_usd), rollout.critical_path_tokens

    one = whole_query if kind == "whole-query" else same_plan
    measured = await map_all(tasks, one, num_at_once=pool.num_at_once)
    cost_usd, tokens = (sum(values) / len(measured) for values in zip(*measured, strict=True))
    if cost_usd <= 0:
        card = pool.config.model(pool.largest)
        is_free = not (card.usd_per_mtok_in or card.usd_per_mtok_out)
        raise ConfigError(
            f"the reference, {pool.largest} on everything, cost nothing on {len(measured)} tasks: "
            + ("give the model a price" if is_free else NOTHING_CARRIED_OUT)
        )
    return Reference(cost_usd=cost_usd, critical_path_tokens=tokens)
