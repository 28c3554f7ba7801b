"""Turns of tool loops, and queries with media: each goes whole to one model, and a session stays on its
model.

The first turn's model is the policy's, or the default model. The allocator is asked only where its call is a
small part of the turn's price and a cheaper model could take the turn."""

from __future__ import annotations

from decimal import Decimal

from r2_serve.calls.estimates import Prompt
from r2_serve.calls.pool import PoolMember
from r2_serve.config import VirtualModelConfig
from r2_serve.errors import SubtaskFailed
from r2_serve.router.able import able_models, final_needs, price, stand_ins, with_able_models
from r2_serve.router.allocator import AllocationTask
from r2_serve.router.context import QueryContext
from r2_serve.router.demand import QueryDemand
from r2_serve.router.failing import sign_of_failure
from r2_serve.router.policies import CHEAPEST, LEARNED, AllocationPolicy
from r2_serve.router.sessions import Session, next_turn, session_key, turn_usd
from r2_serve.router.synthesis import Final
from r2_serve.router.whole import answer_whole
from r2_serve.types import Plan, Query, SessionNote

ALLOCATION_SHARE = Decimal("0.05")
"""Most that an allocation may cost, as a share of what the default model reads the turn's prompt for."""
ALLOCATION_TOKENS = 64
"""Longest reply of the allocator, which names one model."""
MAX_TASK_CHARS = 4_000
"""How much of the user's last message the allocator reads."""
TOO_MANY_REQUESTS = 429


async def answer_turn(
    context: QueryContext, virtual: VirtualModelConfig, policy: AllocationPolicy, expected: QueryDemand
) -> Final:
    """The answer of the session's model, or of the first one if the conversation is new.

    A policy of the request is obeyed to the letter, without a session.

    Raises: InvalidRequest, SubtaskFailed, BudgetExceeded, PoisonousRequest.
    """
    query, sessions = context.query, context.sessions
    if (model := _obeyed(context, virtual, policy)) is not None:
        return await answer_whole(context, virtual, model, expected)
    key = session_key(query)
    session, note = await _turn(context, virtual, policy, sessions.get(key))
    context.draft.session = note
    try:
        final = await answer_whole(context, virtual, note.model, expected)
    except SubtaskFailed as e:
        if e.status >= TOO_MANY_REQUESTS:  # every other refusal is about the request, and not about the model
            sessions.put(key, session.failed(e.message))
        raise
    result = context.draft.results[-1]
    if result.model != note.model:
        reason = f"{note.model} did not answer or had no room, so {result.model} took its place"
        context.draft.session = note.model_copy(
            update={"state": "left", "model": result.model, "reason": reason}
        )
    sessions.put(key, session.answered(result.model, result.usage))
    return final


async def _turn(
    context: QueryContext, virtual: VirtualModelConfig, policy: AllocationPolicy, session: Session | None
) -> tuple[Session, SessionNote]:
    query, pool, sessions = context.query, context.caller.pool, context.sessions
    able = [name for name in _able(context, virtual) if not pool[name].cooldown.left_s()]
    able = able or _able(context, virtual)
    if session is None or (_is_first(query) and session.error is None):
        model, reason = await _first_model(context, virtual, policy, able)
        return Session(model, home=model), SessionNote(state="new", model=model, turn=1, reason=reason)
    present = session.model if session.model in pool else able[-1]
    return next_turn(
        session,
        {name: pool[name].config for name in able},
        instead=next(name for name in [*stand_ins(present, able, pool), *able] if name in able),
        prompt_tokens=_prompt(context, pool[present]).likely_prompt_tokens,
        failure=sign_of_failure(query.messages, query.sampling.forwarded.get("tools")),
        now_s=sessions.now_s(),
    )


def _is_first(query: Query) -> bool:
    """Whether a conversation begins that may only look like an earlier one: it has no name and no reply."""
    return query.session is None and all(message.role != "assistant" for message in query.messages)


def _able(context: QueryContext, virtual: VirtualModelConfig) -> list[str]:
    """The models of the pool that can take the turn, those with enough context if there are any."""
    pool = context.caller.pool
    able = able_models(virtual.pool, pool, final_needs(context.query))
    roomy = [name for name in able if _has_room(context, pool[name])]
    return roomy or able


def _has_room(context: QueryContext, member: PoolMember) -> bool:
    config, max_tokens = member.config, context.query.sampling.max_tokens or 0
    tokens = _prompt(context, member).likely_prompt_tokens + max_tokens
    return not config.has_known_context or tokens <= config.context_tokens


def _prompt(context: QueryContext, member: PoolMember) -> Prompt:
    query = context.query
    sent = query.sampling.format_sent
    return Prompt.to(member.config, query.messages, sent, query.sampling.forwarded)


def _obeyed(context: QueryContext, virtual: VirtualModelConfig, policy: AllocationPolicy) -> str | None:
    """The model that a policy fixes, or that the request's own policy chooses; None if a session may choose.

    Raises: InvalidRequest if the request's own policy names a model that cannot take the turn.
    """
    if not policy.is_fixed and context.query.policy in (None, LEARNED):
        return None
    return _model_of(context, virtual, policy)


def _model_of(context: QueryContext, virtual: VirtualModelConfig, policy: AllocationPolicy) -> str | None:
    """The policy's model for the whole query; None for `learned`."""
    query, plan = context.query, Plan.single("the whole query")
    chosen = policy.allocation(plan, seed=query.request_id)
    if chosen is None:
        return None
    if policy.kind == CHEAPEST:
        return able_models(virtual.pool, context.caller.pool, final_needs(query))[0]
    return with_able_models(query, context.gates, virtual.pool, plan, chosen).models[0]


async def _first_model(
    context: QueryContext, virtual: VirtualModelConfig, policy: AllocationPolicy, able: list[str]
) -> tuple[str, str]:
    """The model of a new session, and why."""
    pool, query = context.caller.pool, context.query
    chosen = _model_of(context, virtual, policy)
    if chosen is not None:
        return chosen, f"the policy {policy.kind!r} chose it"
    cheapest = min(able, key=lambda name: price(pool[name].config))
    usual = virtual.fallback_model
    if usual not in able:
        if not able_models([usual], pool, final_needs(query)):
            return able[-1], f"{usual}, the default model, cannot take the turn"
        usual = stand_ins(usual, able, pool)[0]
    if cheapest == usual or not _is_allocation_worth_it(context, virtual, usual, able):
        return usual, "the default model: an allocation would not be worth its price"
    task = _task(context, virtual, able, usual)
    with context.demand.calling(task.config.model):
        made = await context.allocator.allocate(task, context.ledger)
    context.draft.allocation_fallback = made.fallback
    return made.allocation.models[0], made.fallback or "the allocator chose it"


def _is_allocation_worth_it(
    context: QueryContext, virtual: VirtualModelConfig, usual: str, able: list[str]
) -> bool:
    """Whether an allocation costs at most `ALLOCATION_SHARE` of the turn's prompt on the default model.

    The reply is not counted, as a call of a tool takes few tokens."""
    pool, allocator = context.caller.pool, context.caller.pool[virtual.allocator.model]
    if not allocator.codec.takes_conversations:
        return False
    task = _task(context, virtual, able, usual)
    cards = [pool[name].config for name in able]
    asked = Prompt.to(
        allocator.config, allocator.codec.render_allocate(task.messages, task.plan, cards), None
    )
    price_usd = turn_usd(allocator.config, asked.likely_prompt_tokens, 0, ALLOCATION_TOKENS)
    prompt_tokens = _prompt(context, pool[usual]).likely_prompt_tokens
    return price_usd <= ALLOCATION_SHARE * turn_usd(pool[usual].config, prompt_tokens, 0, 0)


def _task(context: QueryContext, virtual: VirtualModelConfig, able: list[str], usual: str) -> AllocationTask:
    """The allocation of the turn by the user's last message: a long conversation would cost too much."""
    query = context.query
    last = next((m.text for m in reversed(query.messages) if m.role == "user"), "")
    abilities = sorted({need.ability for need in final_needs(query) if need.ability is not None})
    text = f"(needs {', '.join(abilities)}) {last[:MAX_TASK_CHARS]}"
    return AllocationTask(
        messages=(),
        plan=Plan.single(text),
        config=virtual.allocator.model_copy(update={"max_tokens": ALLOCATION_TOKENS, "retries_cut": False}),
        names=tuple(able),
        fallback_model=usual,
        limits=context.limits,
    )
