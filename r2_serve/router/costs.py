"""What the calls of a query are expected to cost, by token counts and the prices of the models' cards.

Tokens of a prompt are estimated as for a call that reports none (`r2_serve.calls.estimates`). The same text
is counted alike for each model, so an error of the estimate is in both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.config import LimitsConfig, ModelConfig, VirtualModelConfig
from r2_serve.router.able import final_needs
from r2_serve.router.allocator import offered
from r2_serve.router.context import read_by
from r2_serve.router.fitted_plan import FittedPlan, read_fitted_plan
from r2_serve.router.gates import QueryGates
from r2_serve.types import Json, Message, Plan, Query, Subtask, Usage, likely_tokens

UNSTATED_REPLY_TOKENS = 16
"""Tokens of the answer that are expected where neither request nor config says anything: the shortest ones.
So no answer can be so short that planning costs more than its share; longer ones only make plans rarer."""
STEP_REPLY_TOKENS = 256
"""Tokens that an inner step writes where no fit says it. It is asked to be brief; the mean is lower."""
USUAL_PLAN = Plan(subtasks=tuple(Subtask(id=i, text="x" * 160) for i in range(1, 9)))
"""The plan that is assumed before there is one: eight steps of one long sentence."""
WHOLE = Plan.single("the whole query")
"""The plan of one step that is the query itself."""
LEAST_CACHED_TOKENS = 1_024
"""Shortest prompt that providers keep in their caches (OpenAI, Anthropic, Google)."""


def expected_reply_tokens(query: Query, default: ModelConfig) -> int:
    """Tokens that the answer is expected to have: `expected_tokens` of the default model's card, and no more
    than the request's `max_tokens`; `UNSTATED_REPLY_TOKENS` if neither is set."""
    asked = query.sampling.max_tokens
    if asked is None and "expected_tokens" not in default.model_fields_set:
        return min(UNSTATED_REPLY_TOKENS, default.reply_tokens)
    return min(asked or default.reply_tokens, default.reply_tokens)


@dataclass(frozen=True)
class AskCost:
    """One call that a step may make."""

    card: ModelConfig
    prompt_tokens: int
    """Tokens of its prompt, with the answers of other steps as long as expected."""
    cached_tokens: int = 0
    """Those that an earlier step has left in the cache of the model's provider."""
    share: Decimal = Decimal(1)
    """The share of queries for which it is expected: 1, but for later models of a gate and checks."""
    reply_tokens: int | None = None
    """None for the reply of the step, which `StepCost` knows."""


@dataclass(frozen=True)
class StepCost:
    """What one step of a plan is expected to read and write."""

    asks: tuple[AskCost, ...]
    """One call, or those of a gate."""
    reply_tokens: int | None
    """None for the last step, which writes the answer of the query."""
    users_usd_per_mtok: Decimal
    """Price of a token of its answer as a part of other steps' prompts."""

    def usd(self, answer_tokens: int, *, is_most: bool = False) -> Decimal:
        """The expected cost, or with `is_most` that of a gate which asks all its models.

        `answer_tokens` is the expected length of the query's answer."""
        usual = answer_tokens if self.reply_tokens is None else self.reply_tokens
        return sum(
            (
                (1 if is_most else ask.share)
                * call_usd(
                    ask.card,
                    ask.prompt_tokens,
                    usual if ask.reply_tokens is None else ask.reply_tokens,
                    ask.cached_tokens,
                )
                for ask in self.asks
            ),
            Decimal(0),
        )

    @property
    def usd_per_mtok_out(self) -> Decimal:
        """Price of a token of the reply, if all models of the step write it."""
        return sum((ask.card.usd_per_mtok_out for ask in self.asks if ask.reply_tokens is None), Decimal(0))

    @property
    def reply_limit(self) -> int | None:
        """The longest reply that all models of the step give; None if none has a limit."""
        limits = [ask.card.reply_limit for ask in self.asks if ask.reply_tokens is None]
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True)
class Costs:
    """Expected costs of one query of a virtual model."""

    gates: QueryGates
    query: Query
    virtual: VirtualModelConfig
    limits: LimitsConfig

    @property
    def pool(self) -> Pool:
        return self.gates.pool

    @property
    def fit(self) -> FittedPlan | None:
        """What `plan_file` holds. Raises: ConfigError."""
        return None if self.virtual.plan_file is None else read_fitted_plan(self.virtual.plan_file)

    @property
    def step_tokens(self) -> int:
        """Tokens that an inner step is expected to write."""
        return (self.fit and self.fit.step_tokens) or STEP_REPLY_TOKENS

    @property
    def default(self) -> PoolMember:
        return self.pool[self.virtual.fallback_model]

    def conversation_tokens(self, member: PoolMember) -> int:
        """Tokens of the client's conversation as it is, with its tools and its format."""
        sampling, rendered = self.query.sampling, member.codec.render_query(self.query.messages)
        return prompt_tokens(member, rendered, sampling.format_sent, sampling.forwarded)

    def direct_usd(self, answer_tokens: int) -> Decimal:
        """The conversation to the default model. One that goes on is read from the cache, but for its last
        message."""
        messages, num_tokens = self.query.messages, self.conversation_tokens(self.default)
        is_continued = any(message.role == "assistant" for message in messages)
        last = likely_tokens(len(messages[-1].text.encode()))
        cached = max(0, num_tokens - last) if is_continued else 0
        return call_usd(self.default.config, num_tokens, answer_tokens, cached)

    def holds(self, name: str, more_tokens: int = 0) -> bool:
        """Whether the conversation and `more_tokens` fit into the context of the model, if it is known.

        A model that takes no conversations is asked by one short line.
        """
        member = self.pool[name]
        if not member.config.has_known_context or not member.codec.takes_conversations:
            return True
        return self.conversation_tokens(member) + more_tokens <= member.config.context_tokens

    def sample_prompt_usd(self) -> Decimal:
        """The prompt of the decomposer."""
        config, max_subtasks = self.virtual.decomposer, self.limits.max_subtasks
        member = self.pool[config.model]
        codec = member.codec.with_prompts(config.prompts)
        cards = [self.pool[name].config for name in self.virtual.pool] if config.allocates else []
        rendered = codec.render_decompose(self.query.messages, max_subtasks, cards)
        schema = member.codec.plan_schema(max_subtasks, cards)
        return call_usd(member.config, prompt_tokens(member, rendered, schema), 0)

    def allocation_usd(self, plan: Plan, messages: Sequence[Message]) -> Decimal:
        """The most that it costs to ask for the models of `plan`, if the allocator reads `messages` too."""
        config = self.virtual.allocator
        member, gates = self.pool[config.model], self.gates.cards()
        cards = [*(self.pool[name].config for name in self.virtual.pool), *offered(gates, member.codec)]
        rendered = member.codec.with_prompts(config.prompts).render_allocate(messages, plan, cards)
        num_tokens = prompt_tokens(member, rendered, member.codec.allocation_schema(plan, cards))
        return call_usd(member.config, num_tokens, self.allocation_tokens(plan))

    def allocation_tokens(self, plan: Plan) -> int:
        """Longest allocation of `plan`: every step with the longest name, at two bytes a token.

        A model that takes no conversations writes a number for each step.
        """
        config, num_steps = self.virtual.allocator, len(plan.subtasks)
        if not self.pool[config.model].codec.takes_conversations:
            return min(config.max_tokens, 2 + 3 * num_steps)
        longest = max(len(name) for name in (*self.virtual.pool, *self.gates.by_name))
        return min(config.max_tokens, 32 + num_steps * (longest // 2 + 4))

    def cheapest_plan_usd(self, models: Sequence[str], answer_tokens: int) -> Decimal:
        """Two steps on the cheapest of `models` for them: a plan costs this at least."""

        def usd(name: str) -> Decimal:
            member = self.pool[self.gates.models(name)[0]]
            num_tokens = self.conversation_tokens(member)
            first = call_usd(member.config, num_tokens if self.virtual.context == "full" else 0, 0)
            return first + call_usd(member.config, num_tokens, answer_tokens, num_tokens)

        return min(map(usd, models))

    def steps(self, plan: Plan, models: Sequence[str]) -> dict[int, StepCost]:
        """The steps of an allocated plan, by id."""
        costs: dict[int, StepCost] = {}
        before = _ancestors(plan)
        for subtask, name in zip(plan.subtasks, models, strict=True):
            users = [models[other.id - 1] for other in plan.subtasks if subtask.id in other.depends_on]
            reading = [self.pool[user].config for name in users for user in self.gates.models(name)]
            limits = [self.pool[name].config.reply_limit for name in self.gates.models(name)]
            limit = min((limit for limit in limits if limit is not None), default=self.step_tokens)
            reply_tokens = None if subtask.id == plan.final_id else min(self.step_tokens, limit)
            costs[subtask.id] = StepCost(
                asks=tuple(self._asks(plan, subtask, before[subtask.id], models)),
                reply_tokens=reply_tokens,
                users_usd_per_mtok=sum((card.usd_per_mtok_in for card in reading), Decimal(0)),
            )
        return costs

    def _asks(
        self, plan: Plan, subtask: Subtask, before: frozenset[int], models: Sequence[str]
    ) -> Iterator[AskCost]:
        """The calls of a step: its model's, or those of its gate and of the models that check answers."""
        action = models[subtask.id - 1]
        names = self.gates.models(action)
        shares = [Decimal(f"{share:.6f}") for share in self.gates.shares(action, names)]
        for place, (name, share) in enumerate(zip(names, shares, strict=True), 1):
            member = self.pool[name]
            num_tokens = self._step_tokens(member, plan, subtask)
            cached = self._cached_tokens(plan, subtask, before, models, name)
            yield AskCost(member.config, num_tokens, cached, share)
            for checker in self.gates.checkers(action) if place < len(names) else ():
                checking = self.pool[checker.model]
                read = self._step_tokens(checking, plan, subtask) + self.step_tokens
                yield AskCost(checking.config, read, share=share, reply_tokens=checker.max_tokens)

    @property
    def whole_gate(self) -> str | None:
        """The gate for queries that are not split; None if there is none that can take this one."""
        name, needs = self.virtual.whole, final_needs(self.query)
        return name if name is not None and self.gates.models(name, needs) else None

    def whole_usd(self, answer_tokens: int) -> Decimal:
        """The expected cost of the query whole: to its gate, or if that is not cheaper the direct call."""
        direct_usd, gate = self.direct_usd(answer_tokens), self.whole_gate
        if gate is None:
            return direct_usd
        return min(direct_usd, self.steps(WHOLE, [gate])[1].usd(answer_tokens))

    def _step_tokens(self, member: PoolMember, plan: Plan, subtask: Subtask) -> int:
        codec, needed = member.codec.with_prompts(self.virtual.prompts), sorted(set(subtask.depends_on))
        if len(plan.subtasks) == 1 and plan.final_id is not None and codec.takes_conversations:
            return self.conversation_tokens(member)
        messages = read_by(subtask, plan, self.query.messages, self.virtual)
        rendered = codec.render_subtask(messages, plan, subtask, dict.fromkeys(needed, ""))
        return prompt_tokens(member, rendered) + self.step_tokens * len(needed)

    def _cached_tokens(
        self, plan: Plan, subtask: Subtask, before: frozenset[int], models: Sequence[str], name: str
    ) -> int:
        """Tokens of the conversation, if the model reads it after it did so for another step."""
        messages = self.query.messages

        def reads_all(step: Subtask) -> bool:
            return read_by(step, plan, messages, self.virtual) == messages

        is_warm = any(
            self.gates.models(models[i - 1])[0] == name and reads_all(plan.subtasks[i - 1]) for i in before
        )
        return self.conversation_tokens(self.pool[name]) if is_warm and reads_all(subtask) else 0


def prompt_tokens(
    member: PoolMember,
    messages: Sequence[Message],
    format_sent: Mapping[str, object] | None = None,
    forwarded: Json | None = None,
) -> int:
    """Likely tokens of a prompt to `member`."""
    return member.prompt(messages, format_sent, forwarded).likely_prompt_tokens


def call_usd(card: ModelConfig, prompt_tokens: int, reply_tokens: int, cached_tokens: int = 0) -> Decimal:
    """Likely cost of a call that may read `cached_tokens` of its prompt from the provider's cache.

    Providers with a price for cache writes keep only prompts that are marked for it, and ours are not.
    """
    keeps = card.usd_per_mtok_cached_read is not None and card.usd_per_mtok_cached_write is None
    cached = min(cached_tokens, prompt_tokens) if keeps and cached_tokens >= LEAST_CACHED_TOKENS else 0
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=reply_tokens, cached_read_tokens=cached)
    return card.cost_usd(usage)


def _ancestors(plan: Plan) -> dict[int, frozenset[int]]:
    """The steps that have ended before each step begins, by step."""
    before: dict[int, frozenset[int]] = {}
    for subtask in plan.subtasks:
        needed = frozenset(subtask.depends_on)
        before[subtask.id] = needed.union(*(before[i] for i in needed))
    return before
