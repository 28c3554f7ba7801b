"""Capacity-aware allocation: a subtask whose model has no room goes to the next cheapest of the pool that has. No Ray.

Late, when the subtask starts, as room changes by the second; early, when the plan is made, its own model is already told of it
(`demand`), so that a model whose work spills still grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r2_serve.calls.caller import CallSpec
from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.config import SpillConfig
from r2_serve.router.demand import Demand

Replicas = Callable[[str], float | None]
"""Running replicas of a model that count for this router process; None where that is not known, or the model is hosted."""


def no_replicas(model: str) -> None:
    """Where nothing is known of any: nothing spills."""


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
    """`chosen`, or the cheapest of `names` that costs no less, has room and can read the prompt; `chosen` again where none is so."""

    def has_room(name: str) -> bool:
        running = replicas(name)
        return not pool[name].cooldown.is_resting and (
            running is None or demand.num_sent(name) < config.calls_per_replica * running
        )

    if has_room(chosen):
        return chosen
    stand_ins = sorted((name for name in names if name != chosen), key=lambda name: _price(pool[name]))
    for name in stand_ins:
        if _price(pool[name]) >= _price(pool[chosen]) and has_room(name) and _fits(pool[name], spec):
            return name
    return chosen


def _price(member: PoolMember) -> tuple[float, float]:
    return float(member.config.usd_per_mtok_out), float(member.config.usd_per_mtok_in)


def _fits(member: PoolMember, spec: CallSpec) -> bool:
    max_tokens, prompt = spec.sampling.max_tokens or member.config.max_tokens, spec.prompt_for(member)
    return prompt.likely_usage(0, max_tokens).prompt_tokens + max_tokens <= member.config.context_tokens
