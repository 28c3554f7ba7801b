"""Plans and allocations of a trained pair, and the cost of its own calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2_serve.errors import CodecError
from r2_serve.lab.domains import Task
from r2_serve.lab.ladder.policies import CODEC
from r2_serve.lab.ladder.replies import Replies
from r2_serve.prompts import get_codec
from r2_serve.types import Message, ModelCard, Plan

MAX_SUBTASKS = 16
PLANS = get_codec("compact-chains")


@dataclass(frozen=True)
class Pair:
    """The names of a decomposer and an allocator among the engines."""

    decomposer: str
    allocator: str


@dataclass(frozen=True)
class Planned:
    """The plan of one task; None if the decomposer wrote none."""

    plan: Plan | None
    cost_usd: float


async def plans(tasks: Sequence[Task], pair: Pair, price: float, replies: Replies) -> list[Planned]:
    """`price` is the decomposer's, in USD per 1M tokens."""

    def planned(task: Task) -> Planned:
        (message,) = PLANS.render_decompose([Message(role="user", content=task.query)], MAX_SUBTASKS)
        reply = replies.of(pair.decomposer, message.text)
        try:
            plan = PLANS.parse_plan(reply.text, task.query)
        except CodecError:
            plan = None
        return Planned(plan, price * reply.tokens / 1e6)

    return await replies.settled([lambda task=task: planned(task) for task in tasks])  # type: ignore[misc]


async def allocations(
    planned: Sequence[Planned], pair: Pair, price: float, cards: Sequence[ModelCard], replies: Replies
) -> list[tuple[tuple[str, ...], float]]:
    """The models of each plan's steps, and the cost of the allocator's call."""

    def allocated(plan: Plan | None) -> tuple[tuple[str, ...], float]:
        if plan is None:
            return (), 0.0
        (message,) = CODEC.render_allocate((), plan, cards)
        reply = replies.of(pair.allocator, message.text, CODEC.allocation_words(plan, cards))
        try:
            models = CODEC.parse_allocation(reply.text, plan, cards).models
        except CodecError:
            models = (cards[-1].name,) * len(plan.subtasks)
        return models, price * reply.tokens / 1e6

    return await replies.settled([lambda p=p: allocated(p.plan) for p in planned])  # type: ignore[misc]
