"""What a query saved against its baseline: exact where one call answered it, counted where a plan did."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

from r2_serve.config import VirtualModelConfig
from r2_serve.types import Trace
from tests.support.in_process import Router, allocation_json, plan_json, query, routing

PRICES = {
    "small": {"usd_per_mtok_in": Decimal("0.1"), "usd_per_mtok_out": Decimal("0.2")},
    "best": {"usd_per_mtok_in": Decimal(10), "usd_per_mtok_out": Decimal(20)},
}
REPLIES = {"small": ["4806 m"], "large": ["higher"], "best": ["no"], "allocator": [allocation_json("small")]}


def trace_of(policy: str | None = None, plan: str = "no plan", **virtual: Any) -> Trace:
    router = Router(routed=routing(**virtual), cards=PRICES, decomposer=[plan], **REPLIES)
    asyncio.run(router.pipeline.answer(query(policy=policy)))
    return router.trace


def test_default_model_in_one_call_saves_nothing() -> None:
    trace = trace_of("one:large")
    assert trace.savings is not None
    assert (trace.savings.baseline, trace.savings.saved_usd) == ("large", 0)
    assert trace.savings.baseline_usd == trace.cost_usd > 0


def test_cheaper_model_in_one_call_saves_the_difference_of_prices() -> None:
    trace = trace_of("one:small")
    assert trace.savings is not None
    (result,) = trace.results
    at_large = (result.usage.prompt_tokens + 2 * result.usage.completion_tokens) / Decimal(1_000_000)
    assert trace.savings.baseline_usd == at_large
    assert trace.savings.saved_usd == at_large - trace.cost_usd > 0


def test_baseline_may_be_any_model_of_the_config() -> None:
    trace = trace_of("one:large", baseline="best")
    assert trace.savings is not None
    assert (trace.savings.baseline, trace.savings.baseline_usd) == ("best", 10 * trace.cost_usd)


def test_plan_that_costs_more_than_the_direct_call_saves_a_negative_sum() -> None:
    trace = trace_of(plan=plan_json("a long step", "another step of #1"))
    assert trace.savings is not None and trace.savings.saved_usd < 0
    assert trace.savings.saved_usd == trace.savings.baseline_usd - trace.cost_usd


def test_pool_model_by_name_and_plan_alone_have_no_savings() -> None:
    router = Router(routed=routing(), decomposer=[plan_json("a")], **REPLIES)
    asyncio.run(router.pipeline.answer(query(model="small")))
    asyncio.run(router.pipeline.answer(query(is_plan_only=True)))
    assert [trace.savings for trace in router.traces] == [None, None]


def test_unknown_baseline_is_refused() -> None:
    routed = routing(baseline="gpt-9")
    assert isinstance(routed.virtual_models["r2"], VirtualModelConfig)
    try:
        routed.check_against(())
    except ValueError as e:
        assert "gpt-9" in str(e)
    else:
        raise AssertionError("a baseline that is no model was accepted")
