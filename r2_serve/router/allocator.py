"""The second stage: the allocator model gives each subtask of a plan to a pool model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from r2_serve.calls.caller import Caller, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool
from r2_serve.config import AllocatorConfig, LimitsConfig
from r2_serve.errors import CodecError, EngineError
from r2_serve.prompts import Codec
from r2_serve.types import Allocation, Message, ModelCard, Plan, Record, Sampling


class AllocationTask(Record):
    """A plan to allocate, and how. It holds all that an allocator in another process needs."""

    messages: tuple[Message, ...]
    """The client's conversation; empty where the allocator judges the plan alone."""
    plan: Plan
    config: AllocatorConfig
    names: tuple[str, ...]
    """The models to choose from, cheapest first."""
    gates: tuple[ModelCard, ...] = ()
    """The gates to choose from, which an allocator of the instruct codec reads of like models."""
    fallback_model: str
    limits: LimitsConfig


class AllocationResult(Record):
    """The allocation, and whether the allocator made it."""

    allocation: Allocation
    fallback: str | None = None
    """Why every subtask went to the fallback model; None if the allocator's choice is used."""


class Allocates(Protocol):
    """What the pipeline needs of an allocator: `Allocator`, here or in another process."""

    async def allocate(self, task: AllocationTask, ledger: Ledger) -> AllocationResult:
        """The result. When this returns or raises, every call it made is in `ledger`."""
        ...


@dataclass(frozen=True)
class Allocator:
    """Asks the allocator model. It keeps no state: each task says how to allocate."""

    pool: Pool

    async def allocate(self, task: AllocationTask, ledger: Ledger) -> AllocationResult:
        """One of the task's models for each subtask; the fallback model if the allocator fails.

        Raises: BudgetExceeded, PoisonousRequest.
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
        codec = self.pool[config.model].codec
        cards = [*(self.pool[name].config for name in task.names), *offered(task.gates, codec)]
        spec = CallSpec(
            render=lambda c: c.with_prompts(config.prompts).render_allocate(task.messages, plan, cards),
            stage="allocate",
            sampling=Sampling(
                max_tokens=config.max_tokens,
                temperature=0.0,
                json_schema=codec.allocation_schema(plan, cards),
                words=codec.allocation_words(plan, cards),
            ),
            adapter=config.adapter,
        )
        ask = caller.call_uncut if config.retries_cut else caller.call
        result = await ask(config.model, spec)
        return self.pool[result.model].codec.parse_allocation(result.completion.text, plan, cards)


def offered(gates: Sequence[ModelCard], codec: Codec) -> Sequence[ModelCard]:
    """The gates among which a model of this codec may choose: a compact one knows the models of its training
    alone."""
    return gates if codec.takes_conversations else ()


def everything_to(model: str, plan: Plan) -> Allocation:
    """The allocation that gives every subtask to one model."""
    return Allocation(models=(model,) * len(plan.subtasks))
