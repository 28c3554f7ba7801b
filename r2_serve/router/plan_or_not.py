"""Whether a query is split or goes whole to one model: arithmetic with expected costs, and no calls.

With `plan: auto` a query is compared with the direct call, which is the client's conversation as it is to the
default model. `planning_share` says by how much the bill may exceed the direct call: 10 % by default. Three
rules keep to that for an answer of the expected length:

1. Before any call: plan and allocation together may cost at most this share of the direct call, by the limits
   of their replies, and a plan must be able to save something. Short queries are never split.
2. Once plan and allocation are known: the steps must cost less than the direct call, also if the answer
   turns out to be half as long as expected. Otherwise the query goes whole, at 110 % at most.
3. While the plan runs: each inner step has a limit of its reply. The limits share what is left up to 110 %,
   so the plan costs no more than that even where steps write more than expected. A step that reaches its
   limit ends the plan, and the query goes whole: no query costs more than 210 %.

With a fit (`plan_file`, `router.fitted_plan`) the lengths are those that it expects, and it says before any
call which queries are worth a plan. The three rules hold all the same.

Attempts that fail and are billed come on top. Where an answer is shorter than expected, 10 % of the expected
direct call are more than 10 % of the real one. So an answer of unknown length is expected to be very short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from r2_serve.calls.ledger import Ledger
from r2_serve.config import AllocatorConfig, DecomposerConfig, VirtualModelConfig
from r2_serve.prompts.conversation import conversation_text
from r2_serve.router.able import is_turn
from r2_serve.router.costs import USUAL_PLAN, Costs, StepCost, expected_reply_tokens
from r2_serve.router.policies import AllocationPolicy
from r2_serve.types import Decision, DecisionReason, Message, Plan, Query

SHORT_QUERY_TOKENS = 100
"""Prompt tokens below which a query is never split: some 400 characters hold too little to share out."""
STEP_LIMIT_TOKENS = 4_096
"""Highest limit of an inner step's reply: some providers refuse one above the longest reply of a model."""
LEAST_PLAN_TOKENS = 450
"""Tokens that a sample of the decomposer needs at least; a plan of eight steps has 300 to 440."""
OUR_TOKENS = 1_000
"""Tokens of our own text in the prompts of decomposer and allocator, and of their replies, at least."""
SHORTER = 2
"""A plan must save also if the answer has this part of its expected length."""


class PlanDropped(Exception):
    """The plan is given up, and the query goes whole to one model."""

    def __init__(self, reason: DecisionReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class PlanCost:
    """What an allocated plan is expected to cost."""

    steps: Mapping[int, StepCost]
    total_usd: Decimal
    """The whole bill: what is spent, and what the steps are expected to cost."""


@dataclass(frozen=True)
class StepLimits:
    """The longest replies of a plan's inner steps, which together cannot cost more than is left."""

    steps: Mapping[int, StepCost]
    slack_usd: Decimal
    """What the plan may cost beyond its expected cost."""

    def of(self, subtask_id: int) -> int | None:
        """Tokens that the step may write: as expected, and its share of the slack. None for the last one."""
        step = self.steps[subtask_id]
        if step.reply_tokens is None:
            return None
        price = step.usd_per_mtok_out + step.users_usd_per_mtok
        num_inner = sum(other.reply_tokens is not None for other in self.steps.values())
        more = int(self.slack_usd * 1_000_000 / (num_inner * price)) if price else STEP_LIMIT_TOKENS
        return min(step.reply_limit or STEP_LIMIT_TOKENS, STEP_LIMIT_TOKENS, step.reply_tokens + more)


class PlanOrNot:
    """Decides about one query of a virtual model."""

    def __init__(self, costs: Costs, ledger: Ledger, policy: AllocationPolicy) -> None:
        self._costs, self._ledger, self._policy = costs, ledger, policy
        text = conversation_text(costs.query.messages)
        self._estimate = None if costs.fit is None else costs.fit.estimate(text)
        self.answer_tokens = self._expected_tokens()
        self.direct_usd = costs.direct_usd(self.answer_tokens)
        self._whole_usd = costs.whole_usd(self.answer_tokens)
        """What a plan is compared with: the direct call, or a cheaper gate for whole queries."""

    def decide(self) -> Decision:
        """What to do before any call is made. What the client or the operator asks for is obeyed."""
        query, setting = self._costs.query, self._costs.virtual.plan
        if query.plan is not None:
            return self._decision("planned", "asked")
        if self._policy.is_whole:
            return self._decision("whole", "asked")
        if is_turn(query):
            return self._decision("whole", "beyond_text")
        if query.policy is not None:
            return self._decision("planned", "asked")
        if setting != "auto":
            return self._decision("whole" if setting == "never" else "planned", "configured")
        if (reason := self._why_whole()) is not None:
            return self._decision("whole", reason)
        if (sampler := self.sampler()) is None:
            return self._decision("whole", "planning_too_dear")
        decision = self._decision("planned", "may_save")
        return decision.model_copy(update={"planning_usd": self._planning_usd(sampler)})

    def whole_action(self, model: str) -> str:
        """The gate for whole queries where it is expected to cost less than the direct call, else `model`."""
        gate = self._costs.whole_gate
        return gate if gate is not None and self._whole_usd < self.direct_usd else model

    def sampler(self) -> DecomposerConfig | None:
        """How to sample plans within what planning may cost; None if it pays for no plan at all."""
        config = self._costs.virtual.decomposer
        fitted = self._estimate and self._estimate.plan_tokens
        left_usd = self._allowance_usd - (Decimal(0) if fitted else self._allocation_usd(USUAL_PLAN))
        for count in range(config.num_samples, 0, -1):
            max_tokens = self._room(count, left_usd)
            if max_tokens >= min(fitted or LEAST_PLAN_TOKENS, config.max_tokens):
                update = {"num_samples": count, "max_tokens": max_tokens, "retries_cut": False}
                return config.model_copy(update=update)
        return None

    def allocator(self, plan: Plan) -> tuple[AllocatorConfig, tuple[Message, ...]]:
        """How to allocate `plan` within what planning may cost, and what the allocator reads beside it.

        It reads the conversation if there is money for that.

        Raises: PlanDropped if the plan alone costs more.
        """
        left_usd = self._allowance_usd - self._ledger.cost_usd
        if self._allocation_usd(plan) > left_usd:
            raise PlanDropped("planning_too_dear")
        update = {"max_tokens": self._costs.allocation_tokens(plan), "retries_cut": False}
        messages = allocator_reads(self._costs.query, self._costs.virtual)
        if self._allocation_usd(plan, messages) > left_usd:
            messages = ()
        return self._costs.virtual.allocator.model_copy(update=update), messages

    def plan_cost(self, plan: Plan, models: Sequence[str]) -> PlanCost:
        """The expected cost of an allocated plan."""
        steps = self._costs.steps(plan, models)
        return PlanCost(steps, self._ledger.cost_usd + _total(steps, self.answer_tokens))

    def step_limits(self, cost: PlanCost) -> StepLimits:
        """The limits of an allocated plan, in which gates are taken to ask all their models.

        Raises: PlanDropped if it costs more than the direct call."""
        asked = {ask.card.name for step in cost.steps.values() for ask in step.asks}
        if not all(self._costs.holds(name, OUR_TOKENS) for name in asked):
            raise PlanDropped("too_long")
        for answer_tokens in (self.answer_tokens, self.answer_tokens // SHORTER):
            if _total(cost.steps, answer_tokens, is_most=True) >= self._costs.whole_usd(answer_tokens):
                raise PlanDropped("plan_too_dear")
        most_usd = self._ledger.cost_usd + _total(cost.steps, self.answer_tokens, is_most=True)
        slack_usd = self._whole_usd + self._allowance_usd - most_usd
        return StepLimits(cost.steps, max(Decimal(0), slack_usd))

    @property
    def _fitted_share(self) -> Decimal:
        """The expected cost of planning as a share of the direct call; 0 where no fit has seen it."""
        return Decimal((self._estimate and self._estimate.planning_share) or 0)

    @property
    def _allowance_usd(self) -> Decimal:
        """The most that planning may cost."""
        return self._costs.virtual.planning_share * self._whole_usd

    def _decision(self, action: str, reason: DecisionReason) -> Decision:
        return Decision.model_validate(
            {
                "action": action,
                "reason": reason,
                "baseline": self._costs.default.config.name,
                "expected_tokens": self.answer_tokens,
                "direct_usd": self.direct_usd,
            }
        )

    def _expected_tokens(self) -> int:
        """Expected length of the answer: what the fit says within the limits, or what the config says."""
        query, default = self._costs.query, self._costs.default.config
        if self._estimate is None:
            return expected_reply_tokens(query, default)
        return min(self._estimate.answer_tokens, query.sampling.max_tokens or default.reply_tokens)

    def _why_whole(self) -> DecisionReason | None:
        """Why no plan is worth a try, before its own costs are known."""
        costs, virtual = self._costs, self._costs.virtual
        if costs.fit is None and costs.conversation_tokens(costs.default) < SHORT_QUERY_TOKENS:
            return "short"
        if not all(costs.holds(m, OUR_TOKENS) for m in (virtual.decomposer.model, virtual.allocator.model)):
            return "too_long"
        if costs.fit is not None and self._estimate is not None:
            if not costs.fit.is_worth_it(self._estimate):
                return "no_gain"
            return "planning_too_dear" if self._fitted_share > virtual.planning_share else None
        models = self._policy.models or virtual.pool
        is_dear = costs.cheapest_plan_usd(models, self.answer_tokens) >= self._whole_usd
        return "nothing_to_save" if is_dear else None

    def _room(self, num_samples: int, left_usd: Decimal) -> int:
        """Tokens that each of `num_samples` plans may have for `left_usd`, within the config's own limit."""
        config = self._costs.virtual.decomposer
        price = self._costs.pool[config.model].config.usd_per_mtok_out
        left_usd -= self._num_prompts(num_samples) * self._costs.sample_prompt_usd()
        if left_usd < 0:
            return 0
        affordable = math.floor(left_usd * 1_000_000 / (num_samples * price)) if price else config.max_tokens
        return min(config.max_tokens, affordable)

    def _num_prompts(self, num_samples: int) -> int:
        """How often the decomposer's prompt is billed: once if its provider is known to take `n`."""
        config = self._costs.virtual.decomposer
        is_shared = config.num_at_once > 1 and self._costs.pool[config.model].choices.are_taken
        return 1 if is_shared else num_samples

    def _planning_usd(self, sampler: DecomposerConfig) -> Decimal:
        """What a fit expects plan and allocation to cost, or without one the most that they cost."""
        if self._fitted_share:
            return self._fitted_share * self.direct_usd
        price = self._costs.pool[sampler.model].config.usd_per_mtok_out
        prompts_usd = self._num_prompts(sampler.num_samples) * self._costs.sample_prompt_usd()
        replies_usd = sampler.num_samples * sampler.max_tokens * price / 1_000_000
        return prompts_usd + replies_usd + self._allocation_usd(USUAL_PLAN)

    def _allocation_usd(self, plan: Plan, messages: tuple[Message, ...] = ()) -> Decimal:
        """The most that it costs to allocate `plan`. A policy that is a rule asks no model, and nor does a
        decomposer that allocates."""
        is_asked = self._policy.asks_allocator and not self._costs.virtual.decomposer.allocates
        return self._costs.allocation_usd(plan, messages) if is_asked else Decimal(0)


def allocator_reads(query: Query, virtual: VirtualModelConfig) -> tuple[Message, ...]:
    """What the allocator gets of the conversation: all of it, or nothing with `context: needed`."""
    return query.messages if virtual.context == "full" else ()


def _total(steps: Mapping[int, StepCost], answer_tokens: int, *, is_most: bool = False) -> Decimal:
    return sum((step.usd(answer_tokens, is_most=is_most) for step in steps.values()), Decimal(0))
