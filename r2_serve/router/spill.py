"""Spill: a subtask whose model has no room goes to the next cheapest pool model that has. No Ray.

The stand-in is chosen when the subtask starts, as room changes by the second. Its own model has heard of the
subtask when the plan was made (`demand`), so a model whose work spills still gets more replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r2_serve.calls.caller import CallSpec
from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.config import SpillConfig
from r2_serve.router.able import price, stand_ins_when_it_fails
from r2_serve.router.demand import Demand

Replicas = Callable[[str], float | None]
"""Number of running replicas of a model for this router process; None if unknown or for a hosted model."""


def no_replicas(model: str) -> None:
    """The number of replicas if none is known, so that no subtask spills."""


def with_room(
    chosen: str,
    names: Sequence[str],
    spec: CallSpec,
    *,
    pool: Pool,
    demand: Demand,
    replicas: Replicas,
    config: SpillConfig,
) -> str:
    """`chosen`, or if it has no room the cheapest of `names` that costs no less and has room."""

    def has_room(name: str) -> bool:
        running = replicas(name)
        return not pool[name].cooldown.is_resting and (
            running is None or demand.num_sent(name) < config.calls_per_replica * running
        )

    if has_room(chosen):
        return chosen
    for name in stand_ins_when_it_fails(chosen, names, pool):
        is_able = price(pool[name].config) >= price(pool[chosen].config) and spec.suits(pool[name])
        if is_able and has_room(name) and _fits(pool[name], spec):
            return name
    return chosen


def _fits(member: PoolMember, spec: CallSpec) -> bool:
    max_tokens, prompt = spec.sampling.max_tokens or member.config.reply_tokens, spec.prompt_for(member)
    return prompt.likely_usage(0, max_tokens).prompt_tokens + max_tokens <= member.config.context_tokens
