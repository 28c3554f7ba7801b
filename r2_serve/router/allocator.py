"""A plan into an allocation: one pool model per subtask, by the allocator model or by a fixed policy."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from r2_serve.calls.caller import Caller, CallSpec, Pool
from r2_serve.calls.ledger import Ledger
from r2_serve.config import AllocatorConfig, LimitsConfig
from r2_serve.errors import CodecError, EngineError, InvalidRequest
from r2_serve.types import Allocation, Plan, Record, Sampling

LEARNED = "learned"


class AllocationTask(Record):
    """What is to be allocated, and how: all that an allocator elsewhere needs to know."""

    query: str
    plan: Plan
    config: AllocatorConfig
    names: tuple[str, ...]
    """Models to choose from, cheapest first."""
    fallback_model: str
    limits: LimitsConfig


class AllocationResult(Record):
    """The allocation, and what it took to get it."""

    allocation: Allocation
    fallback: str | None = None
    """Why every subtask went to the fallback model; None when the allocator's choice was used."""


@dataclass(frozen=True)
class Allocator:
    """Stateless: how to allocate comes with each plan."""

    pool: Pool

    async def allocate(self, task: AllocationTask, ledger: Ledger) -> AllocationResult:
        """One of the task's models for each subtask, always. The call is in `ledger`.

        Raises: BudgetExceeded.
        """
        try:
            async with asyncio.timeout(task.config.timeout_s):
                allocation = await self._ask(Caller(self.pool, ledger, task.limits), task)
            return AllocationResult(allocation=allocation)
        except CodecError as e:
            reason = f"{e.reason}: {e.message}"
        except EngineError as e:
            reason = f"allocator_failed ({type(e).__name__}: {e.message[:120]})"
        except TimeoutError:
            reason = f"timeout: no allocation within {task.config.timeout_s:g} s"
        return AllocationResult(allocation=everything_to(task.fallback_model, task.plan), fallback=reason)

    async def _ask(self, caller: Caller, task: AllocationTask) -> Allocation:
        plan, config = task.plan, task.config
        cards = [self.pool[name].config for name in task.names]
        codec = self.pool[config.model].codec
        spec = CallSpec(
            render=lambda c: c.render_allocate(task.query, plan, cards),
            stage="allocate",
            sampling=Sampling(
                max_tokens=config.max_tokens,
                temperature=0.0,
                json_schema=codec.allocation_schema(plan, cards),
            ),
            adapter=config.adapter,
        )
        result = await caller.call(config.model, spec)
        return self.pool[result.model].codec.parse_allocation(result.completion.text, plan, cards)


def everything_to(model: str, plan: Plan) -> Allocation:
    """Every subtask to one model."""
    return Allocation(models=(model,) * len(plan.subtasks))


def fixed_allocation(policy: str, plan: Plan, names: Sequence[str], *, seed: str) -> Allocation | None:
    """What `policy` prescribes without asking a model; None for `learned`.

    - `all:MODEL`
    - `final-only:SMALL,LARGE`: LARGE for the last subtask alone
    - `random`, or `random:MODEL=SHARE,...`: drawn with `seed`, so the same request is allocated the same way again

    Raises: InvalidRequest where the policy is not known or names a model outside `names`.
    """
    if policy == LEARNED:
        return None
    kind, _, details = policy.partition(":")
    models = [item.partition("=")[0] for item in details.split(",") if item]
    if not set(models) <= set(names):
        raise _unknown_policy(policy, names)
    if kind == "random":
        draw = random.Random(seed)
        weights = _shares(policy, details, names)
        return Allocation(
            models=tuple(draw.choices(list(weights), list(weights.values()), k=len(plan.subtasks)))
        )
    if kind == "all" and len(models) == 1:
        return everything_to(models[0], plan)
    if kind == "final-only" and len(models) == 2:
        return Allocation(models=(models[0],) * (len(plan.subtasks) - 1) + (models[1],))
    raise _unknown_policy(policy, names)


def _shares(policy: str, details: str, names: Sequence[str]) -> dict[str, float]:
    if not details:
        return dict.fromkeys(names, 1.0)
    try:
        shares = {
            model: float(share) for model, _, share in (item.partition("=") for item in details.split(","))
        }
    except ValueError as e:
        raise _unknown_policy(policy, names) from e
    if min(shares.values()) < 0 or not 0 < sum(shares.values()) < math.inf:
        raise _unknown_policy(policy, names)
    return shares


def _unknown_policy(policy: str, names: Sequence[str]) -> InvalidRequest:
    forms = "'learned', 'all:MODEL', 'final-only:SMALL,LARGE', 'random' or 'random:MODEL=SHARE,...'"
    return InvalidRequest(
        f"unknown policy {policy!r}; expected {forms} with models of {list(names)}", "r2.policy"
    )
