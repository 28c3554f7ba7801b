"""What a query cost less than if one model, the baseline, had answered all of it in one call. No Ray.

The baseline is asked with the client's conversation and writes an answer as long as the one that was given.
Where one call answered the whole query, its reported usage is priced; else prompt and answer are counted as
the baseline would count them. So a query that the baseline itself answered in one call saves nothing, and
what planning and failed attempts cost is lost.
"""

from __future__ import annotations

from r2_serve.config import VirtualModelConfig
from r2_serve.router.context import QueryContext
from r2_serve.router.costs import Costs, prompt_tokens
from r2_serve.types import Message, Savings, Usage


def savings(context: QueryContext, virtual: VirtualModelConfig, answer: str) -> Savings | None:
    """What the query saved against the virtual model's baseline; None if no subtask was answered."""
    if not context.draft.results:
        return None
    card = context.caller.pool[virtual.baseline_model].config
    baseline_usd = card.cost_usd(_baseline_usage(context, virtual, answer))
    saved_usd = baseline_usd - context.ledger.cost_usd
    return Savings(baseline=card.name, baseline_usd=baseline_usd, saved_usd=saved_usd)


def _baseline_usage(context: QueryContext, virtual: VirtualModelConfig, answer: str) -> Usage:
    draft, member = context.draft, context.caller.pool[virtual.baseline_model]
    if draft.decision is not None and draft.decision.action == "whole":
        return draft.results[-1].usage
    costs = Costs(context.gates, context.query, virtual, context.limits)
    reply = (Message(role="assistant", content=answer),)
    return Usage(
        prompt_tokens=costs.conversation_tokens(member), completion_tokens=prompt_tokens(member, reply)
    )
