"""A query that goes whole to one pool model, as a plan of one step that no model was asked for."""

from __future__ import annotations

from r2_serve.config import VirtualModelConfig
from r2_serve.router.allocator import everything_to
from r2_serve.router.context import QueryContext
from r2_serve.router.demand import QueryDemand
from r2_serve.router.plan_run import PlanRun
from r2_serve.router.synthesis import Final, synthesize
from r2_serve.types import Plan


async def answer_whole(
    context: QueryContext, virtual: VirtualModelConfig, model: str, expected: QueryDemand
) -> Final:
    """The reply of `model` to the client's conversation, in one call, streamed where the client asks for it.

    Raises: SubtaskFailed, BudgetExceeded, PoisonousRequest.
    """
    plan = context.draft.plan = Plan.single(context.text)
    allocation = context.draft.allocation = everything_to(model, plan)
    expected.plan(plan, allocation)
    calls = await PlanRun(context, virtual, plan, allocation, expected).calls()
    return synthesize(plan, calls, context.query.sampling, context.limits)
