"""Each subtask gets a model: the allocator's choice, or the fallback model with the reason."""

import asyncio
from typing import Any

import pytest

from r2_serve.calls.budget import Budget
from r2_serve.calls.ledger import Ledger
from r2_serve.config import AllocatorConfig, LimitsConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import BudgetExceeded, EngineRefused
from r2_serve.prompts.conversation import asked
from r2_serve.router.allocator import AllocationResult, AllocationTask, Allocator
from tests.support.cpu import loops
from tests.support.in_process import allocation_json, model, plan_of, pool_of
from tests.support.virtual_time import now_s, run

PLAN = plan_of("find the height", "halve #1")
NAMES = ("small", "large")
NO_LIMIT = Budget()


async def allocate(
    engine: ScriptedEngine, *, ledger: Ledger | None = None, codec: str = "instruct", **config: Any
) -> AllocationResult:
    pool = pool_of((model("picker", codec=codec), engine), *((model(name), engine) for name in NAMES))
    allocator, wanted = Allocator(pool), AllocatorConfig(model="picker", **config)
    task = AllocationTask(
        messages=asked("the query"),
        plan=PLAN,
        config=wanted,
        names=NAMES,
        fallback_model="large",
        limits=LimitsConfig(),
    )
    return await allocator.allocate(task, ledger or Ledger(NO_LIMIT))


@pytest.mark.parametrize(
    ("codec", "reply"), [("instruct", allocation_json("small", "large")), ("compact", "@1 @2")]
)
def test_choice_of_the_allocator_is_used(codec: str, reply: str) -> None:
    ledger = Ledger(NO_LIMIT)
    made = run(allocate(ScriptedEngine([reply]), codec=codec, ledger=ledger))
    assert (made.allocation.models, made.fallback) == (("small", "large"), None)
    assert [call.stage for call in ledger.calls] == ["allocate"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("the small one, I think", "not_json"),
        ("", "not_json"),
        (allocation_json("small"), "wrong_count: 1 choice for 2 subtasks"),
        (allocation_json("small", "picker"), "unknown_model"),
        (allocation_json("small", "x" * 1_000_000), "too_long"),
        (allocation_json(*["small"] * 10_000).replace(" ", ""), "wrong_count"),
        (EngineRefused("quota"), "allocator_failed (EngineRefused: quota)"),
    ],
)
def test_hostile_allocator_costs_money_but_not_the_answer(reply: str | Exception, reason: str) -> None:
    ledger, done = Ledger(NO_LIMIT), list[AllocationResult]()
    assert loops(lambda: done.append(run(allocate(ScriptedEngine([reply]), ledger=ledger)))) < 40
    made = done[0]
    assert made.allocation.models == ("large", "large")
    assert made.fallback is not None
    assert made.fallback.startswith(reason)
    assert len(made.fallback) < 500
    assert len(ledger.calls) == 1, "and the call is paid"


def test_hanging_allocator_is_abandoned_and_paid() -> None:
    ledger = Ledger(NO_LIMIT)

    async def check() -> AllocationResult:
        made = await allocate(ScriptedEngine(["late"], delay_s=50), timeout_s=6, ledger=ledger)
        assert now_s() == 6.0
        return made

    made = run(check())
    assert (made.allocation.models, made.fallback) == (
        ("large", "large"),
        "timeout: no allocation within 6 s",
    )
    assert [(call.outcome, call.is_estimated) for call in ledger.calls] == [("cancelled", True)]


def test_cancellation_is_not_treated_as_a_timeout() -> None:
    async def check() -> None:
        task = asyncio.ensure_future(allocate(ScriptedEngine(["late"], delay_s=50)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(check())


def test_allocation_beyond_the_budget_is_an_error() -> None:
    with pytest.raises(BudgetExceeded):
        run(allocate(ScriptedEngine(["never asked"]), ledger=Ledger(Budget(max_calls=0))))
