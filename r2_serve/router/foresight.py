"""What a query needs, from what is known before its calls, so that nothing is paid and then refused. No Ray.

Before planning: some model must hold the conversation, and the budgets must pay for the query going whole to
one model; that money is set aside while the query is planned. Before the first step: each model must hold
its prompt, and the budgets must pay for all steps together, whose money is held while they run. A step whose
prompt turns out longer goes to another model that holds it, or reads shorter answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from r2_serve.calls.budget import Need
from r2_serve.calls.caller import CallSpec
from r2_serve.calls.pool import PoolMember
from r2_serve.config import VirtualModelConfig
from r2_serve.errors import ContextOverflow, InvalidRequest
from r2_serve.router.able import able_models, final_needs
from r2_serve.router.context import QueryContext
from r2_serve.types import Plan, Sampling
from r2_serve.types.gates import Checker

SURELY = 0.75
"""Part of the likely tokens of a prompt that it has at least. Only what is too long by that is refused."""
CHARS_PER_TOKEN = 2.5
"""Characters of an answer per token of the prompt that it becomes a part of, with a margin."""


@dataclass(frozen=True)
class StepModels:
    """The models that a step may ask: one, or those of a gate in order, and models that check answers."""

    names: tuple[str, ...]
    checkers: tuple[Checker, ...] = ()


@dataclass(frozen=True)
class Needed:
    """What a plan needs."""

    need: Need
    num_asked: int
    """Models of each gate that the budgets pay for, from the first on."""


@dataclass(frozen=True)
class Whole:
    """The query as one call of one model."""

    model: str
    need: Need


def whole_query(context: QueryContext, virtual: VirtualModelConfig) -> Whole:
    """The query whole to the default model, or if that is too small or too dear to the cheapest other.

    Raises: InvalidRequest if no model can hold it; BudgetExceeded if none can be paid.
    """
    pool, query, allowance = context.caller.pool, context.query, context.ledger.allowance
    spec = CallSpec(lambda codec: codec.render_query(query.messages), "execute", query.sampling)
    named = list(dict.fromkeys((virtual.fallback_model, *virtual.pool)))
    able = able_models(named, pool, final_needs(query)) or named
    if able[0] == virtual.fallback_model and _fits(pool[able[0]], spec):
        default = Whole(able[0], need_of(pool[able[0]], spec))
        if allowance.has_room(default.need):
            return default
    holding = [name for name in able if _fits(pool[name], spec)]
    holding = holding or [name for name in able if _fits(pool[name], spec, SURELY)]
    if not holding:
        raise _too_long(context, able, spec)
    options = sorted((Whole(name, need_of(pool[name], spec)) for name in holding), key=_usd)
    affordable = (option for option in options if allowance.has_room(option.need))
    if (cheapest := next(affordable, None)) is None:
        raise allowance.refusal_of(options[0].need)
    return cheapest


def plan_need(
    context: QueryContext, plan: Plan, models: Sequence[StepModels], blank: Mapping[int, CallSpec]
) -> Needed:
    """What all steps of an allocated plan need together, with answers at the limits of their length.

    Gates may ask all their models if the budgets pay for that; else as many, from the first on, as they pay.
    `blank` has the call of each step, with empty answers of the steps before it.

    Raises: InvalidRequest if neither a step's model nor a stand-in of it can hold its prompt; BudgetExceeded
    if the budgets do not pay for one model of each step.
    """
    allowance, total = context.ledger.allowance, Need()
    for num_asked in range(max(len(step.names) for step in models), 0, -1):
        total = _steps_need(context, plan, models, blank, num_asked)
        if allowance.has_room(total):
            return Needed(total, num_asked)
    raise allowance.refusal_of(total)


def _steps_need(
    context: QueryContext,
    plan: Plan,
    models: Sequence[StepModels],
    blank: Mapping[int, CallSpec],
    num_asked: int,
) -> Need:
    """What the steps need if gates ask at most `num_asked` models."""
    pool, total = context.caller.pool, Need()
    for subtask, step in zip(plan.subtasks, models, strict=True):
        spec = blank[subtask.id]
        if not any(_fits(pool[name], spec, SURELY) for name in (*step.names, *spec.stand_ins)):
            raise _too_long(context, step.names, spec)
        read = [models[i - 1].names[:num_asked] for i in set(subtask.depends_on)]
        more_tokens = sum(max(_answer_tokens(context, pool[name]) for name in names) for names in read)
        for place, name in enumerate(step.names[:num_asked], 1):
            total += need_of(pool[name], spec, more_tokens)
            for checker in step.checkers if place < len(step.names) else ():
                checks = replace(spec, sampling=Sampling(max_tokens=checker.max_tokens))
                answer_tokens = _answer_tokens(context, pool[name])
                total += need_of(pool[checker.model], checks, more_tokens + answer_tokens)
    return total


def fitting(context: QueryContext, chosen: str, spec: CallSpec) -> str | None:
    """`chosen`, or the first of its stand-ins that holds the prompt and can be paid; None if none does."""
    pool, allowance = context.caller.pool, context.ledger.allowance
    for name in (chosen, *spec.stand_ins):
        member = pool[name]
        is_able = name == chosen or spec.suits(member)
        if is_able and _fits(member, spec) and allowance.has_room(need_of(member, spec)):
            return name
    return None


def need_of(member: PoolMember, spec: CallSpec, more_tokens: int = 0) -> Need:
    """The most that a call is expected to need, with `more_tokens` of prompt that are not written yet."""
    config, sampling = member.config, spec.sampling
    reply_tokens = (sampling.max_tokens or config.reply_tokens) * sampling.num_choices
    usage = spec.prompt_for(member).most_usage(reply_tokens, more_tokens)
    return Need(1, usage.total_tokens, config.cost_usd(usage))


def _usd(option: Whole) -> Decimal:
    return option.need.usd


def _answer_tokens(context: QueryContext, member: PoolMember) -> int:
    """Tokens of a model's answer as a part of another step's prompt."""
    return min(member.config.reply_tokens, int(context.limits.max_answer_chars / CHARS_PER_TOKEN))


def _fits(member: PoolMember, spec: CallSpec, part: float = 1.0) -> bool:
    """Whether the context, if it is known, holds `part` of the likely prompt and a token of reply.

    A model that takes no conversations is asked for the texts of steps alone, which are short.
    """
    config = member.config
    if not config.has_known_context or not member.codec.takes_conversations:
        return True
    return part * spec.prompt_for(member).likely_prompt_tokens < config.context_tokens


def _too_long(context: QueryContext, names: Iterable[str], spec: CallSpec) -> InvalidRequest:
    members = [context.caller.pool[name] for name in names]
    largest = max(members, key=lambda member: member.config.context_tokens)
    num_tokens = spec.prompt_for(largest).likely_prompt_tokens
    return InvalidRequest(
        f"the prompt has about {num_tokens} tokens, but the context of {largest.config.name} holds "
        f"{largest.config.context_tokens}, and no other model may take it: shorten the messages",
        "messages",
        ContextOverflow.code,
    )
