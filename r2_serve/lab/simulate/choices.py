"""Which models the steps of a simulated query get: those of its workload, of the config's policy, or by
`explore`. Choices that depend on what models answer cannot be simulated, and are refused.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from r2_serve.config import RoutingConfig, VirtualModelConfig
from r2_serve.errors import ConfigError, InvalidRequest
from r2_serve.lab.workload import Request, Step
from r2_serve.router.policies import AUTO, AllocationPolicy

if TYPE_CHECKING:
    from r2_serve.lab.simulate.system import PooledModel


def check_choices(routing: RoutingConfig, name: str) -> None:
    """Raises: ConfigError if virtual model `name` uses a gate, is on trial or has an unknown policy."""
    virtual = routing.virtual_models[name]
    used = {*policy_of(virtual).models, virtual.whole} & set(virtual.gates)
    if used:
        raise ConfigError(
            f"virtual model {name!r} uses gates {sorted(map(str, used))}: simulate knows no gates, whose "
            "next model depends on the answer. Name a model in `policy`, leave `whole` out, or measure with "
            "`r2-serve load`"
        )
    if name in routing.rollouts:
        raise ConfigError(
            f"virtual model {name!r} has a candidate on trial: simulate knows none; leave `rollouts` out"
        )


def steps_by_policy(policy: AllocationPolicy, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with the models that the policy gives them.

    `learned` leaves the workload's own, and so do policies that do not split.
    """
    if policy.asks_allocator or policy.is_whole or request.plan is None:
        return steps
    allocation = policy.allocation(request.plan, seed=str(request.index))
    assert allocation is not None, "only those policies give none"
    return tuple(replace(step, model=model) for step, model in zip(steps, allocation.models, strict=True))


def whole_model(virtual: VirtualModelConfig) -> str:
    """The model of a query that is not split."""
    policy = policy_of(virtual)
    return policy.models[0] if policy.is_whole and policy.models != (AUTO,) else virtual.fallback_model


def explored(
    virtual: VirtualModelConfig,
    models: Mapping[str, PooledModel],
    chosen: tuple[str, ...],
    draw: random.Random,
) -> tuple[str, ...]:
    """The models with others for a share of the steps, as in `router.explore`, but without budgets."""
    if not virtual.explore or virtual.policy.startswith("random"):
        return chosen
    most = models[virtual.fallback_model].price
    cheap = [name for name in virtual.pool if models[name].price <= most]

    def taken(model: str) -> str:
        others = [name for name in cheap if name != model]
        return draw.choice(others) if others and draw.random() < virtual.explore else model

    return tuple(map(taken, chosen))


def policy_of(virtual: VirtualModelConfig) -> AllocationPolicy:
    """The policy of requests that name none. Raises: ConfigError."""
    try:
        return AllocationPolicy.parse(virtual.policy, virtual.pool, virtual.gates)
    except InvalidRequest as e:
        raise ConfigError(f"policy: {e.message}") from e
