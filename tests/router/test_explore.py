"""A small share of choices goes to another model, with a probability that the trace keeps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from r2_serve.config import GateConfig
from r2_serve.types import Trace
from tests.support.in_process import Router, allocation_json, plan_json, query, routing
from tests.support.virtual_time import run

AGREE = {"kind": "agreement", "by": "number"}
CARDS = {"huge": {"usd_per_mtok_in": Decimal(9), "usd_per_mtok_out": Decimal(9)}}


def router(**virtual: Any) -> Router:
    usual = {"pool": ("small", "medium", "large"), "policy": "one:small", "explore": 0.3}
    return Router(
        routed=routing(**{**usual, **virtual}),
        cards=CARDS,
        decomposer=[plan_json("find the first", "use #1")],
        allocator=[allocation_json("small", "small")],
        **{name: ["The answer is 4."] for name in ("small", "medium", "large", "huge")},
    )


def traces(served: Router, number: int = 300, **fields: Any) -> list[Trace]:
    async def ask_all() -> None:
        for i in range(number):
            await served.pipeline.answer(query(request_id=f"q{i}", **fields))

    run(ask_all())
    return served.traces


def chosen(found: list[Trace]) -> dict[str, int]:
    names = [name for trace in found if trace.allocation for name in trace.allocation.models]
    return {name: names.count(name) for name in sorted(set(names))}


def test_other_models_get_their_share_and_the_trace_its_probability() -> None:
    found = traces(router())
    counts = chosen(found)
    assert set(counts) == {"small", "medium", "large"}
    assert 0.6 < counts["small"] / 300 < 0.8
    for trace in found:
        assert trace.allocation is not None
        expected = 0.7 if trace.allocation.models == ("small",) else 0.15
        assert trace.propensities == (pytest.approx(expected),)


def test_nothing_is_drawn_by_default() -> None:
    found = traces(router(explore=0.0), 30)
    assert chosen(found) == {"small": 30} and not any(trace.propensities for trace in found)


def test_models_dearer_than_the_default_model_are_never_drawn() -> None:
    found = traces(router(pool=("small", "medium", "huge", "large")))
    assert "huge" not in chosen(found)


def test_no_query_is_refused_because_of_a_draw() -> None:
    prices = {"small": 1, "medium": 900, "large": 1000}
    served = router()
    for name, usd in prices.items():
        member = served.pool[name]
        update = {"usd_per_mtok_in": Decimal(usd), "usd_per_mtok_out": Decimal(usd)}
        served.pool[name] = type(member)(member.config.model_copy(update=update), member.engine)
    found = traces(served, 60, max_cost_usd=Decimal("0.02"))
    assert all(trace.error is None for trace in found)
    assert chosen(found) == {"small": 60}


def test_steps_of_a_plan_draw_for_themselves() -> None:
    found = traces(router(policy="learned", plan="always"))
    pairs = [trace.allocation.models for trace in found if trace.allocation]
    assert any(a == "small" != b for a, b in pairs) and any(b == "small" != a for a, b in pairs)
    assert all(len(trace.propensities) == 2 for trace in found)


def test_gate_is_explored_like_a_model() -> None:
    gate = GateConfig.model_validate({"ask": ("small", "large"), "accept": (AGREE,)})
    found = traces(router(gates={"careful": gate}, policy="one:careful"))
    counts = chosen(found)
    assert set(counts) == {"careful", "small", "medium", "large"}
    assert 0.6 < counts["careful"] / 300 < 0.8


@pytest.mark.parametrize("fields", [{"policy": "one:small"}, {"policy": "random"}])
def test_choice_of_the_client_is_obeyed(fields: dict[str, Any]) -> None:
    assert not any(trace.propensities for trace in traces(router(), 30, **fields))
