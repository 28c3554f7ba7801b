"""A decomposer that allocates gives plan and models in one reply, and no allocator is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r2_serve.config import HostedEngineConfig
from r2_serve.errors import EngineUnavailable
from r2_serve.types import Trace
from tests.support.in_process import Router, allocation_json, plan_of, query, routing
from tests.support.virtual_time import run

HOSTED = HostedEngineConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")
TEXTS = ("find the tower", "say how high #1 is")


def reply_of(*models: str | None, texts: tuple[str, ...] = TEXTS) -> str:
    steps = [
        {"id": i, "text": text, "depends_on": [i - 1] if i > 1 else [], "model": name}
        for i, (text, name) in enumerate(zip(texts, models, strict=True), 1)
    ]
    return json.dumps({"subtasks": steps})


def router_of(*replies: Any, virtual: dict[str, Any] | None = None, **decomposer: Any) -> Router:
    return Router(
        routed=routing(decomposer={"allocates": True, **decomposer}, **(virtual or {})),
        cards={"decomposer": {"engine": HOSTED}} if decomposer.get("good_enough", 0) is None else {},
        decomposer=list(replies),
        allocator=[allocation_json("large", "large")],
        small=["the Eiffel tower"],
        large=["330 m"],
    )


def answered(router: Router, **fields: Any) -> Trace:
    run(router.pipeline.answer(query(**fields)))
    return router.trace


def test_one_prompt_gives_plan_and_models() -> None:
    router = router_of(reply_of("small", "large"))
    trace = answered(router)
    assert [call.stage for call in trace.calls] == ["decompose", "execute", "execute"]
    assert trace.allocation is not None and trace.allocation.models == ("small", "large")
    assert [result.model for result in trace.results] == ["small", "large"]
    assert (trace.plan, trace.allocation_fallback) == (plan_of(*TEXTS), None)
    assert "small" in router.prompts("decomposer")[0], "the prompt shows the pool"


def test_models_are_those_of_the_plan_that_is_kept() -> None:
    loose = ("find the tower", "say a height", "name a city")
    router = router_of(
        reply_of("large", "large", "large", texts=loose), reply_of("small", "large"), num_samples=3
    )
    trace = answered(router)
    assert (trace.num_plan_samples, trace.plan) == (2, plan_of(*TEXTS))
    assert trace.allocation is not None and trace.allocation.models == ("small", "large")


@pytest.mark.parametrize("models", [(None, "large"), ("small", "huge")], ids=["missing", "unknown"])
def test_reply_without_a_known_model_in_each_step_is_no_plan(models: tuple[str | None, ...]) -> None:
    trace = answered(router_of(reply_of(*models)))
    assert trace.plan_fallback is not None and "unknown_model" in trace.plan_fallback
    assert [(call.stage, call.model) for call in trace.calls][-1] == ("execute", "large")


def test_decomposer_that_fails_leaves_the_query_to_the_default_model() -> None:
    trace = answered(router_of(EngineUnavailable("down")))
    assert trace.plan_fallback is not None
    assert trace.allocation is not None and trace.allocation.models == ("large",)


def test_plan_of_the_client_is_allocated_by_the_allocator() -> None:
    trace = answered(router_of(reply_of("small", "small")), plan=plan_of(*TEXTS))
    assert [call.stage for call in trace.calls] == ["allocate", "execute", "execute"]
    assert trace.allocation is not None and trace.allocation.models == ("large", "large")


def test_rule_of_a_request_comes_before_the_models_of_the_plan() -> None:
    trace = answered(router_of(reply_of("small", "small")), policy="all:large")
    assert trace.allocation is not None and trace.allocation.models == ("large", "large")


def test_plan_auto_counts_one_prompt_in_place_of_two() -> None:
    """The planning of both ways, as the trace tells what it may cost at most."""
    most = []
    for allocates in (False, True):
        router = Router(
            routed=routing(plan="auto", decomposer={"allocates": allocates}),
            cards={
                "large": {"usd_per_mtok_in": 50, "usd_per_mtok_out": 200, "expected_tokens": 2_000},
                "small": {"usd_per_mtok_in": 1, "usd_per_mtok_out": 4},
            },
            decomposer=[reply_of("small", "small")],
            allocator=[allocation_json("small", "small")],
            small=["half"],
            large=["whole"],
        )
        trace = answered(router, text="Compare both summits in every respect. " * 40)
        assert trace.decision is not None and trace.decision.reason == "may_save"
        assert trace.decision.planning_usd is not None
        most.append(trace.decision.planning_usd)
        assert trace.cost_usd - trace.worker_cost_usd <= trace.decision.planning_usd
    assert most[1] < most[0]
