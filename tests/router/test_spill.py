"""A subtask whose model has no room goes to a model that may take it, and to no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2_serve.config import SpillConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.types import Query
from tests.support.in_process import Router, allocation_json, plan_json, plan_of, query, routing
from tests.support.virtual_time import run

POOL = ("small", "medium", "large")
PRICES = {"small": 1, "medium": 2, "large": 9}
WIDE = plan_json("a", "b", "c", "d", "join #1 #2 #3 #4")
ONE_EACH = SpillConfig(calls_per_replica=1)


def answered_by(
    replicas: Mapping[str, float],
    *,
    spill: SpillConfig | None = ONE_EACH,
    asked: Query | None = None,
    cards: Mapping[str, dict[str, Any]] | None = None,
) -> list[str]:
    """The model that answered each step of a plan (four steps and a join), all allocated to `small`."""
    priced = {
        name: {"usd_per_mtok_in": usd, "usd_per_mtok_out": usd, **(cards or {}).get(name, {})}
        for name, usd in PRICES.items()
    }
    workers = {name: ScriptedEngine(["yes"], delay_s=1.0) for name in POOL}
    router = Router(
        routed=routing(pool=POOL, spill=spill),
        cards=priced,
        decomposer=[WIDE],
        allocator=[allocation_json(*["small"] * 5)],
        **workers,
    )
    router.pipeline.replicas = replicas.get
    run(router.pipeline.answer(asked or query()))
    assert router.trace.allocation is not None and set(router.trace.allocation.models) <= set(POOL)
    return [result.model for result in router.trace.results]


def test_without_spill_every_subtask_waits_for_its_model() -> None:
    assert answered_by({"small": 1}, spill=None) == ["small"] * 5


def test_subtask_without_room_goes_to_the_next_cheapest_model_with_room() -> None:
    assert answered_by({"small": 2, "medium": 1}) == ["small", "small", "medium", "large", "small"]
    assert answered_by({"small": 9, "medium": 1}) == ["small"] * 5


def test_model_without_a_replica_has_no_room() -> None:
    assert answered_by({"small": 0, "medium": 0}) == ["large"] * 5


def test_subtask_waits_for_the_chosen_model_when_all_are_full() -> None:
    assert answered_by({"small": 1, "medium": 1, "large": 0}) == [
        "small",
        "medium",
        "small",
        "small",
        "small",
    ]


def test_no_subtask_spills_to_a_cheaper_model_or_to_one_that_cannot_read_the_prompt() -> None:
    assert "medium" not in answered_by({"small": 1}, cards={"medium": {"context_tokens": 64}})
    assert "medium" not in answered_by({"small": 1}, cards={"medium": {"usd_per_mtok_out": 0}})


def test_pinned_model_is_used_although_it_is_full() -> None:
    plan = plan_of("a", "b", "c", "d", "join #1 #2 #3 #4")
    pinned = query(plan=plan, pinned=dict.fromkeys(range(1, 6), "small"))
    assert answered_by({"small": 0}, asked=pinned) == ["small"] * 5


def test_subtask_that_must_stay_on_premises_spills_to_no_hosted_model() -> None:
    inside = {"small": {"fallbacks_on_premises": True}, "medium": {"on_premises": False}}
    full = {"small": 1, "medium": 9, "large": 9}
    assert answered_by(full)[1] == "medium"
    assert answered_by(full, cards=inside)[1] == "large"
