"""The reward of GRPO: a function of what a reply achieves, and the judge that runs it to find out.

    R = 1[correct] * (K - lambda * cost/cost_ref - mu * path/path_ref)
        + w_f * 1[well-formed] + w_r * review + w_s * swap

It is one combined function, because among several functions TRL counts a `None` as 0. `None` means that calls
failed; such a rollout has no part in its group. A batch runs on the pool at once, and the same reply to the
same prompt runs only once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

from r2_serve.config import LimitsConfig
from r2_serve.errors import CodecError, EngineError, EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation import judging
from r2_serve.prompts import Codec
from r2_serve.prompts.conversation import asked
from r2_serve.types import Message, Plan, Record, Sampling, Usage, substitute
from r2_train.config import Module, RewardConfig
from r2_train.rollouts.call_cache import SpendLimitReached
from r2_train.rollouts.markets import Market
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.collect import checked_plan
from r2_train.stages.examples import read_by_allocator
from r2_train.stages.tasks import is_correct, verdict

R = TypeVar("R", bound=Record)
Completion: TypeAlias = str | Sequence[dict[str, str]]
"""A reply as TRL gives it: a plain text, or a conversation that ends with the reply."""


class Reference(Record):
    """The means per query that costs and paths are divided by. `measure_reference` finds them."""

    cost_usd: float
    critical_path_tokens: float

    def path_ratio(self, tokens: float) -> float:
        return tokens / max(1.0, self.critical_path_tokens)


class Judged(Record):
    """What one reply achieves."""

    is_well_formed: bool
    invalid: str | None = None
    """Why the reply is not well-formed: the slug of the codec's error."""
    is_correct: bool | None = False
    """None if calls failed or the grader could not tell."""
    cost_usd: float = 0.0
    """Cost of the whole query: the workers, and the router's own calls with this reply among them."""
    critical_path_tokens: float = 0.0
    models: tuple[str, ...] = ()
    num_subtasks: int = 0
    review: float = 0.0
    swap: float = 0.0


def reward(judged: Judged, config: RewardConfig, reference: Reference) -> float | None:
    """The formula of this module. Sources: cost after success only is ours; the review is the paper's."""
    if not judged.is_well_formed:
        return 0.0
    if judged.is_correct is None:
        return None
    value = config.well_formed + config.review * judged.review + config.swap * judged.swap
    if judged.is_correct:
        value += config.correct
        value -= config.cost * judged.cost_usd / reference.cost_usd
        value -= config.critical_path * reference.path_ratio(judged.critical_path_tokens)
    return value


@dataclass(frozen=True)
class TokenCounts:
    """Counts tokens as the model in training does."""

    prompt: Callable[[Sequence[Message]], int]
    reply: Callable[[str], int]


@dataclass
class Judge:
    """Runs the replies of one module on the pool, which has the other module too."""

    module: Module
    pool: ServedPool
    grader: Grader
    config: RewardConfig
    tasks: dict[str, Task]
    counts: TokenCounts
    _known: dict[tuple[str, Plan | None, str, str], asyncio.Task[Judged]] = field(
        default_factory=dict, repr=False
    )

    async def judge(
        self, task_id: str, plan: Plan | None, reply: str, market: Market | None = None
    ) -> Judged:
        """Runs `reply` once, and again if calls failed. `plan` is None for the decomposer."""
        key = (task_id, plan, reply, market.model_dump_json() if market else "")
        if key not in self._known:
            task = self.tasks[task_id]
            work = (
                self._judge_plan(task, reply)
                if plan is None
                else self._judge_models(task, plan, reply, market)
            )
            self._known[key] = asyncio.ensure_future(work)
        judged = await self._known[key]
        if judged.is_correct is None:
            self._known.pop(key, None)
        return judged

    async def _judge_plan(self, task: Task, reply: str) -> Judged:
        try:
            plan = checked_plan(reply, task.query, self._codec, self._limits)
        except CodecError as e:
            return Judged(is_well_formed=False, invalid=e.reason)
        prompt = self._codec.render_decompose(asked(task.query), self._limits.max_subtasks)
        rollout = await self.pool.run(f"reward-{task.id}", task.query, plan=plan)
        return await self._judged(task, plan, rollout, self._reply_cost(prompt, reply))

    async def _judge_models(self, task: Task, plan: Plan, reply: str, market: Market | None) -> Judged:
        cards = self.pool.cards if market is None else market.cards(self.pool.cards)
        try:
            models = self._codec.parse_allocation(reply, plan, cards).models
        except CodecError as e:
            return Judged(is_well_formed=False, invalid=e.reason)
        read = read_by_allocator(self.pool.virtual, task.query)
        prompt = self._codec.render_allocate(read, plan, cards)
        rollout = await self.pool.run(f"reward-{task.id}", task.query, plan=plan, models=models)
        judged = await self._judged(task, plan, rollout, self._reply_cost(prompt, reply))
        if market is not None:
            judged = judged.model_copy(update={"cost_usd": self._cost_in(market, judged, rollout)})
        if self.config.swap and judged.is_correct:
            return judged.model_copy(update={"swap": await self._swap_credit(task, plan, models)})
        return judged

    async def _judged(self, task: Task, plan: Plan, rollout: Rollout, own_cost_usd: float) -> Judged:
        results = rollout.trace.results if rollout.trace else ()
        return Judged(
            is_well_formed=True,
            is_correct=await verdict(self.grader, task, rollout),
            cost_usd=float(rollout.cost_usd) + own_cost_usd,
            critical_path_tokens=rollout.critical_path_tokens,
            models=tuple(result.model for result in results),
            num_subtasks=len(plan.subtasks),
            review=await self._review(task, plan, rollout) if self.config.review else 0.0,
        )

    def _cost_in(self, market: Market, judged: Judged, rollout: Rollout) -> float:
        """The workers' calls at the market's prices, scaled so that its dearest model costs what the pool's
        does, and the router's own calls as they are."""
        dearest = max(card.usd_per_mtok_out for card in self.pool.cards) / max(market.prices.values())
        own_usd = judged.cost_usd - float(rollout.worker_cost_usd)
        return own_usd + float(dearest) * market.cost_usd(rollout.calls)

    async def _swap_credit(self, task: Task, plan: Plan, models: Sequence[str]) -> float:
        """Share of steps that the next cheaper model would get wrong. These steps earn their price."""
        order = list(self.pool.pool)
        needed = []
        for i, model in enumerate(models):
            if model == order[0]:
                continue
            swapped = (*models[:i], order[order.index(model) - 1], *models[i + 1 :])
            rollout = await self.pool.run(f"swap-{task.id}", task.query, plan=plan, models=swapped)
            needed.append((await is_correct(self.grader, task, rollout.answer)) is False)
        return sum(needed) / len(needed) if needed else 1.0

    async def _review(self, task: Task, plan: Plan, rollout: Rollout) -> float:
        """Share of step answers that the reviewer approves."""
        assert self.config.reviewer is not None
        if rollout.trace is None:
            return 0.0
        answers = {result.id: result.answer for result in rollout.trace.results}
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
        return _mean(scores)

    @property
    def _codec(self) -> Codec:
        return self.pool.codec_of(self.module)

    @property
    def _limits(self) -> LimitsConfig:
        return self.pool.routing.limits

    def _reply_cost(self, prompt: Sequence[Message], reply: str) -> float:
        """Cost in USD that serving will pay for the call that gives `reply`."""
        prompt_tokens, completion_tokens = self.counts.prompt(prompt), self.counts.reply(reply)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        return float(self.pool.module_model(self.module).cost_usd(usage))


class LogMetric(Protocol):
    """TRL's function that adds a number to the step's metrics."""

    def __call__(self, name: str, value: float, /) -> None: ...


class PlanReward:
    """The reward function as TRL calls it, on a batch. It also logs the batch's metrics."""

    __name__ = "plan"

    def __init__(self, judge: Judge, config: RewardConfig, reference: Reference) -> None:
        self._judge, self._config, self._reference = judge, config, reference

    async def __call__(
        self, completions: Sequence[Completion], task_id: Sequence[str], plan: Sequence[str | None],
        market: Sequence[str | None] | None = None, log_metric: LogMetric | None = None, **more: object,
    ) -> list[float | None]:  # fmt: skip
        """A reward for each completion; None if calls failed.

        Raises: SpendLimitReached; EngineUnavailable if so many calls failed that the pool must be down.
        """
        pool = self._judge.pool
        offers = market or [None] * len(completions)
        rows = [
            (task, _read(Plan, text), _text(completion), _read(Market, offer))
            for task, text, completion, offer in zip(task_id, plan, completions, offers, strict=True)
        ]
        judged = await map_all(rows, lambda row: self._judge.judge(*row), num_at_once=pool.num_at_once)
        rewards = [reward(item, self._config, self._reference) for item in judged]
        num_failed = rewards.count(None)
        if num_failed > self._config.max_failed_share * len(rewards):
            raise EngineUnavailable(
                f"{num_failed} of {len(rewards)} rollouts failed on the pool, more than "
                "reward.max_failed_share allows: check that the pool is running"
            )
        if log_metric is not None:
            for name, value in batch_metrics(judged, self._reference, pool.pool).items():
                log_metric(name, value)
        return rewards


def batch_metrics(judged: Sequence[Judged], reference: Reference, pool: Sequence[str]) -> dict[str, float]:
    """Means over a batch, and each model's share of all steps."""
    known = [item for item in judged if item.is_correct is not None]
    formed = [item for item in known if item.is_well_formed]
    steps = [model for item in formed for model in item.models]
    invalid = Counter(item.invalid for item in judged if item.invalid is not None)
    return {
        "accuracy": _mean([bool(item.is_correct) for item in known]),
        "well_formed": _mean([item.is_well_formed for item in judged]),
        "failed": _mean([item.is_correct is None for item in judged]),
        "cost_ratio": _mean([item.cost_usd / reference.cost_usd for item in formed]),
        "critical_path_ratio": _mean([reference.path_ratio(item.critical_path_tokens) for item in formed]),
        "subtasks": _mean([item.num_subtasks for item in formed]),
        **{f"share/{model}": steps.count(model) / max(1, len(steps)) for model in pool},
        **{f"invalid/{reason}": count / len(judged) for reason, count in invalid.items()},
    }


def _read(kind: type[R], text: str | None) -> R | None:
    return kind.model_validate_json(text) if text else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
