"""The figures that checkpoints are ranked by: an outage of the pool says nothing about a router."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_train.stages.measure import RouterScore, measure, measure_reference
from r2_train.stages.rewards import Reference
from tests.support.scripted_evaluation import question, sums
from tests.support.scripted_training import LIMITS, cache_in, engines, plans, pool_over, worker

WRONG = ("recall {0}", "recall {1}", "recall #1")
ALLOCATOR = ['{"models": ["tiny", "tiny", "large"]}']


async def score(tmp_path: Path, **changed: Any) -> RouterScore:
    reference = Reference(cost_usd=1.0, critical_path_tokens=1.0)
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(**{"allocator": ALLOCATOR, **changed}))
        always = pool.virtual.model_copy(update={"plan": "always"})
        routing = pool.routing.model_copy(update={"virtual_models": {"r2": always}})
        return await measure(replace(pool, routing=routing), sums(8), Grader(), reference)


async def test_task_whose_calls_failed_is_no_wrong_answer(tmp_path: Path) -> None:
    first = sums(8)[0].query

    def able(messages: Any, sampling: Any) -> Any:
        if question(messages) == first:
            return EngineUnavailable("down")
        return worker(10**9)(messages, sampling)

    some = await score(tmp_path, **dict.fromkeys(LIMITS, able))
    assert (some.num_failed, some.num_tasks, some.accuracy) == (1, 8, 1.0)


@pytest.mark.parametrize("module", ["decomposer", "allocator"])
async def test_router_whose_own_module_is_down_is_not_measured(tmp_path: Path, module: str) -> None:
    """Serving answers such queries in its own way, which is no verdict on the module."""
    down: dict[str, Any] = {module: [EngineUnavailable("down")], **{key: ["7"] for key in LIMITS}}
    with pytest.raises(EngineUnavailable, match=r"calls failed in 8 of 8 tasks.*: EngineUnavailable"):
        await score(tmp_path, **down)


async def test_pool_that_is_down_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="calls failed in 8 of 8 tasks"):
        await score(tmp_path, **{key: [EngineUnavailable("down")] for key in LIMITS})
    assert (await score(tmp_path)).accuracy == 1.0


async def test_answer_of_a_wrong_plan_is_wrong(tmp_path: Path) -> None:
    assert (await score(tmp_path, decomposer=plans(WRONG))).accuracy == 0.0


async def test_reference_of_a_decomposer_without_a_valid_plan_names_the_decomposer(tmp_path: Path) -> None:
    """Workers that take no whole query cost nothing then, although they have prices."""
    refused = {key: [EngineRefused("reads steps only")] for key in LIMITS}
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(decomposer=["no plan"], allocator=ALLOCATOR, **refused))
        with pytest.raises(ConfigError, match="cost nothing on 8 tasks: no plan of the decomposer could be"):
            await measure_reference(pool, sums(8), "same-plans")
