"""Exploration: a small share of steps goes to another model than the one chosen, drawn at random. No Ray.

A router that always chooses alike learns nothing of what the other models would have answered. With `explore`
each choice has a probability above 0 for them, which the trace keeps (`propensities`), so that books of
served traffic give estimates for every model (`lab.outcomes.offpolicy`).

What it may cost is bounded. Only models are drawn that are no dearer than the default model, and for which
the budgets would pay even if every step went there. Plans that were made to save money are left as they are.
"""

from __future__ import annotations

from r2_serve.calls.budget import Need
from r2_serve.calls.caller import CallSpec
from r2_serve.config import VirtualModelConfig
from r2_serve.router.able import able_models, final_needs, inner_needs, is_turn, price
from r2_serve.router.context import QueryContext
from r2_serve.router.foresight import need_of
from r2_serve.router.rollout import drawn
from r2_serve.types import Allocation, Plan


def explored(
    context: QueryContext, virtual: VirtualModelConfig, plan: Plan, allocation: Allocation
) -> Allocation:
    """`allocation` with another model for some steps. The draft of the trace gets the probability of each."""
    if not virtual.explore or _is_settled(context):
        return allocation
    name, share = context.query.reply_id or context.query.request_id, virtual.explore
    models, chances = [], []
    for step, chosen in zip(plan.subtasks, allocation.models, strict=True):
        others = _others(context, virtual, chosen, len(plan.subtasks), is_final=step.id == plan.final_id)
        draw = drawn(f"explore/{name}/{step.id}")
        is_other = bool(others) and draw < share
        models.append(others[int(draw / share * len(others))] if is_other else chosen)
        chances.append(share / len(others) if is_other else 1 - share if others else 1.0)
    context.draft.propensities = tuple(chances)
    return Allocation(models=tuple(models))


def _is_settled(context: QueryContext) -> bool:
    """Whether the choice is the client's, is drawn already, belongs to a session, or is a shadow's."""
    query, draft = context.query, context.draft
    is_chosen = query.policy is not None or query.plan is not None or query.gate is not None
    is_shadow = query.rollout is not None and query.rollout.arm == "shadow"
    return is_chosen or is_shadow or is_turn(query) or bool(draft.shares) or draft.session is not None


def _others(
    context: QueryContext, virtual: VirtualModelConfig, chosen: str, num_steps: int, *, is_final: bool
) -> list[str]:
    """The models that may take the step in place of the chosen model or gate."""
    query, pool, allowance = context.query, context.caller.pool, context.ledger.allowance
    spec = CallSpec(lambda codec: codec.render_query(query.messages), "execute", query.sampling)
    most = price(pool[virtual.fallback_model].config)

    def is_paid(name: str) -> bool:
        need = need_of(pool[name], spec)
        return allowance.has_room(Need(num_steps, num_steps * need.tokens, num_steps * need.usd))

    able = able_models(virtual.pool, pool, final_needs(query) if is_final else inner_needs(query))
    return [n for n in able if n != chosen and price(pool[n].config) <= most and is_paid(n)]
