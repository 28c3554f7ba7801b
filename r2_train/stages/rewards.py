"""Rewards of GRPO: plain functions of what a reply came to, and the one asynchronous function that finds that out.

    R = 1[correct] * (K - lambda * cost/cost_ref - mu * path/path_ref) + w_f * 1[well-formed] + w_r * review + w_s * swap

One combined function, as TRL counts a lone `None` among several as 0: `None` means that calls failed, and such a rollout has no
part in its group. A whole batch is run at once on the served pool; the same reply to the same prompt is run once, ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from r2_serve.config import LimitsConfig
from r2_serve.errors import CodecError, EngineError, EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation import judging
from r2_serve.prompts import Codec
from r2_serve.types import Message, Plan, Record, Sampling, Usage, substitute
from r2_train.config import Module, RewardConfig
from r2_train.rollouts.call_cache import SpendLimitReached
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.collect import checked_plan
from r2_train.stages.tasks import is_correct


class Reference(Record):
    """What costs and paths are divided by: means per query of everything to the largest model, on the plans of the start."""

    cost_usd: float
    critical_path_tokens: float


class Judged(Record):
    """What one reply came to. `is_correct` is None where calls failed or the grader could not tell."""

    is_well_formed: bool
    is_correct: bool | None = False
    cost_usd: float = 0.0
    """Of the whole query: workers, and the router's own calls with this very reply among them."""
    critical_path_tokens: float = 0.0
    models: tuple[str, ...] = ()
    num_subtasks: int = 0
    review: float = 0.0
    swap: float = 0.0


def reward(judged: Judged, config: RewardConfig, reference: Reference) -> float | None:
    """See the module's text. Source: success-gated cost is ours; the procedural review is the paper's."""
    if not judged.is_well_formed:
        return 0.0
    if judged.is_correct is None:
        return None
    value = config.well_formed + config.review * judged.review + config.swap * judged.swap
    if judged.is_correct:
        value += config.correct
        value -= config.cost * judged.cost_usd / reference.cost_usd
        value -= config.critical_path * judged.critical_path_tokens / max(1.0, reference.critical_path_tokens)
    return value


@dataclass(frozen=True)
class TokenCounts:
    """How the model in training counts."""

    prompt: Callable[[Sequence[Message]], int]
    reply: Callable[[str], int]


@dataclass
class Judge:
    """Runs replies of one module on the pool. `partner` calls (the allocator's, while plans are trained) are the pool's own."""

    module: Module
    pool: ServedPool
    grader: Grader
    config: RewardConfig
    tasks: dict[str, Task]
    counts: TokenCounts
    _known: dict[tuple[str, Plan | None, str], asyncio.Task[Judged]] = field(default_factory=dict, repr=False)

    async def judge(self, task_id: str, plan: Plan | None, reply: str) -> Judged:
        """What `reply` came to; asked once, remembered unless calls failed."""
        key = (task_id, plan, reply)
        if key not in self._known:
            self._known[key] = asyncio.ensure_future(self._judge(self.tasks[task_id], plan, reply))
        judged = await self._known[key]
        if judged.is_correct is None:
            self._known.pop(key, None)
        return judged

    async def _judge(self, task: Task, plan: Plan | None, reply: str) -> Judged:
        return await (
            self._judge_plan(task, reply) if plan is None else self._judge_allocation(task, plan, reply)
        )

    async def _judge_plan(self, task: Task, reply: str) -> Judged:
        plan = checked_plan(reply, task.query, self._codec.name, self._limits)
        if plan is None:
            return Judged(is_well_formed=False)
        own_cost_usd = self._reply_cost(
            self._codec.render_decompose(task.query, self._limits.max_subtasks), reply
        )
        return await self._judged(
            task, plan, await self.pool.run(f"reward-{task.id}", task.query, plan=plan), own_cost_usd
        )

    async def _judge_allocation(self, task: Task, plan: Plan, reply: str) -> Judged:
        models = self._models(reply, plan)
        if models is None:
            return Judged(is_well_formed=False)
        own_cost_usd = self._reply_cost(self._codec.render_allocate(task.query, plan, self.pool.cards), reply)
        outcome = await self.pool.run(f"reward-{task.id}", task.query, plan=plan, models=models)
        judged = await self._judged(task, plan, outcome, own_cost_usd)
        if self.config.swap and judged.is_correct:
            return judged.model_copy(update={"swap": await self._swap_credit(task, plan, models)})
        return judged

    async def _judged(self, task: Task, plan: Plan, outcome: Rollout, own_cost_usd: float) -> Judged:
        has_failed = outcome.error is not None and not outcome.is_refused
        trace = outcome.trace
        return Judged(
            is_well_formed=True,
            is_correct=None if has_failed else await is_correct(self.grader, task, outcome.answer),
            cost_usd=float(outcome.cost_usd) + own_cost_usd,
            critical_path_tokens=outcome.critical_path_tokens,
            models=tuple(result.model for result in trace.results) if trace else (),
            num_subtasks=len(plan.subtasks),
            review=await self._review(task, plan, outcome) if self.config.review else 0.0,
        )

    async def _swap_credit(self, task: Task, plan: Plan, models: Sequence[str]) -> float:
        """Share of steps that the next cheaper model would have got wrong: steps that earn their price."""
        order, needed, asked = list(self.pool.pool), 0, 0
        for i, model in enumerate(models):
            if order.index(model) == 0:
                continue
            swapped = tuple(
                order[order.index(model) - 1] if j == i else name for j, name in enumerate(models)
            )
            outcome = await self.pool.run(f"swap-{task.id}", task.query, plan=plan, models=swapped)
            asked += 1
            needed += (await is_correct(self.grader, task, outcome.answer)) is False
        return needed / asked if asked else 1.0

    async def _review(self, task: Task, plan: Plan, outcome: Rollout) -> float:
        """Share of step answers that the reviewer thinks right."""
        assert self.config.reviewer is not None
        if outcome.trace is None:
            return 0.0
        answers = {result.id: result.answer for result in outcome.trace.results}
        scores = []
        for subtask in plan.subtasks:
            prompt = judging.score_prompt(task.query, substitute(subtask.text, answers), answers[subtask.id])
            try:
                reply = await self.pool.ask(self.config.reviewer, prompt, Sampling(temperature=0.0))
            except SpendLimitReached:
                raise
            except EngineError:
                continue
            scores.append(judging.parse_score(reply.text) / judging.MAX_SCORE)
        return sum(scores) / len(scores) if scores else 0.0

    @property
    def _codec(self) -> Codec:
        return self.pool.members[self.pool.module_model(self.module).name].codec

    @property
    def _limits(self) -> LimitsConfig:
        return self.pool.routing.limits

    def _models(self, reply: str, plan: Plan) -> tuple[str, ...] | None:
        try:
            return self._codec.parse_allocation(reply, plan, self.pool.cards).models
        except CodecError:
            return None

    def _reply_cost(self, prompt: Sequence[Message], reply: str) -> float:
        """USD of the call whose reply this is: the trainer generated it, but serving will pay for it."""
        card = self.pool.module_model(self.module)
        return float(
            card.cost_usd(
                Usage(prompt_tokens=self.counts.prompt(prompt), completion_tokens=self.counts.reply(reply))
            )
        )


class PlanReward:
    """TRL's reward function: `await` it with a batch, get a reward or None per completion. It also logs what the batch came to."""

    __name__ = "plan"

    def __init__(self, judge: Judge, config: RewardConfig, reference: Reference) -> None:
        self._judge, self._config, self._reference = judge, config, reference

    async def __call__(
        self, completions: Sequence[Any], task_id: Sequence[str], plan: Sequence[str | None], **extras: Any
    ) -> list[float | None]:
        """Raises: EngineUnavailable where so many calls failed that the pool must be out; SpendLimitReached."""
        rows = [
            (t, Plan.model_validate_json(p) if p else None, _text(c))
            for t, p, c in zip(task_id, plan, completions, strict=True)
        ]
        judged = await map_all(
            rows, lambda row: self._judge.judge(*row), num_at_once=self._judge.pool.num_at_once
        )
        rewards = [reward(item, self._config, self._reference) for item in judged]
        num_failed = rewards.count(None)
        if num_failed > self._config.max_failed_share * len(rewards):
            raise EngineUnavailable(
                f"{num_failed} of {len(rewards)} rollouts failed on the pool, more than reward.max_failed_share allows: is it running?"
            )
        if "log_metric" in extras:
            for name, value in batch_metrics(judged, self._reference, self._judge.pool.pool).items():
                extras["log_metric"](name, value)
        return rewards


def batch_metrics(judged: Sequence[Judged], reference: Reference, pool: Sequence[str]) -> dict[str, float]:
    """Means over a batch, and the share of each model among all steps."""
    known = [item for item in judged if item.is_correct is not None]
    formed = [item for item in known if item.is_well_formed]
    steps = [model for item in formed for model in item.models]
    return {
        "accuracy": _mean([float(bool(item.is_correct)) for item in known]),
        "well_formed": _mean([float(item.is_well_formed) for item in judged]),
        "failed": _mean([float(item.is_correct is None) for item in judged]),
        "cost_ratio": _mean([item.cost_usd / reference.cost_usd for item in formed]),
        "critical_path_ratio": _mean(
            [item.critical_path_tokens / max(1.0, reference.critical_path_tokens) for item in formed]
        ),
        "subtasks": _mean([float(item.num_subtasks) for item in formed]),
        **{f"share/{model}": steps.count(model) / max(1, len(steps)) for model in pool},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _text(completion: Any) -> str:
    """Of a plain or a conversational completion."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
