"""A query that goes whole to one pool model or gate, as a plan of one step that no model was asked for."""

from __future__ import annotations

from r2_serve.config import VirtualModelConfig
from r2_serve.router.allocator import everything_to
from r2_serve.router.context import QueryContext
from r2_serve.router.demand import QueryDemand
from r2_serve.router.explore import explored
from r2_serve.router.plan_run import PlanRun
from r2_serve.router.synthesis import Final, synthesize
from r2_serve.types import Plan


async def answer_whole(
    context: QueryContext, virtual: VirtualModelConfig, action: str, expected: QueryDemand
) -> Final:
    """The reply of a model, or of a gate, to the client's conversation, streamed if the client asks for it.

    Raises: SubtaskFailed, BudgetExceeded, PoisonousRequest.
    """
    plan = context.draft.plan = Plan.single(context.text)
    allocation = explored(context, virtual, plan, everything_to(action, plan))
    context.draft.allocation = allocation
    expected.plan(plan, context.gates.first_models(allocation))
    calls = await PlanRun(context, virtual, plan, allocation, expected).calls()
    return synthesize(plan, calls, context.query.sampling, context.limits)
