"""The arithmetic of `benchmarks/gateway.py` on slots written by hand, and the replies of its provider."""

from __future__ import annotations

import json

import pytest

from benchmarks.gateway import OURS, THEIRS, hosted_config, report
from benchmarks.gateway_arithmetic import DIRECT, Load, Slot, cost, idle_cores, ratios
from benchmarks.gateway_upstream import ANSWER, COMPLETIONS, EVENTS, NUM_SUBTASKS, PLAN
from r2_serve.config import RouterConfig, RoutingConfig
from r2_serve.engines.hosted_replies import StreamReader, parse_completion
from r2_serve.types import Plan

PLAIN, ROUTED = Load("plain", 1), Load("routed", 1)


def slot(
    target: str, latency_s: float, load: Load = PLAIN, round_: int = 0, num: int = 10, **cpu_s: float
) -> Slot:
    """A slot of two seconds: `num` replies took `latency_s` each, and half of that to the first byte."""
    return Slot(
        round_,
        target,
        load,
        2.0,
        [latency_s] * num,
        [latency_s / 2] * num,
        {OURS: 0.0, THEIRS: 0.0, "upstream": 0.1, **cpu_s},
    )


def a_round(round_: int, ours_s: float, theirs_s: float) -> list[Slot]:
    """One slot of each target.

    Our gateway uses 0.1 of a core at rest and theirs nothing; ten requests cost them 0.05 s and 0.2 s of CPU.
    """
    return [
        slot(DIRECT, 0.020, round_=round_, r2=0.2),
        slot(OURS, ours_s, round_=round_, r2=0.25),
        slot(THEIRS, theirs_s, round_=round_, r2=0.2, litellm=0.2),
    ]


def test_added_latency_is_relative_to_the_direct_request_of_the_same_round() -> None:
    slots = [*a_round(0, 0.022, 0.030), *a_round(1, 0.024, 0.040), *a_round(2, 0.023, 0.045)]
    ours = cost(slots, OURS, PLAIN)
    assert ours.added_p50_ms == pytest.approx(3.0)
    assert ours.added_first_p50_ms == pytest.approx(1.5)
    assert ours.added_p50_ms_by_round == pytest.approx((2.0, 4.0, 3.0))


def test_cpu_is_reported_with_and_without_the_gateways_idle_use() -> None:
    slots = a_round(0, 0.022, 0.030)
    assert idle_cores(slots, OURS, 0) == pytest.approx(0.1)
    ours, theirs = cost(slots, OURS, PLAIN), cost(slots, THEIRS, PLAIN)
    assert (ours.cpu_ms, ours.cpu_with_idle_ms) == pytest.approx((5.0, 25.0))
    assert (theirs.cpu_ms, theirs.cpu_with_idle_ms) == pytest.approx((20.0, 20.0))
    assert ours.requests_per_s == 5.0


def test_ratio_is_taken_in_each_round() -> None:
    assert ratios([1.0, 2.0, 9.0], [10.0, 10.0, 10.0]) == (0.2, 0.1, 0.9)
    with pytest.raises(ValueError, match="nothing to compare by"):
        ratios([1.0], [0.0])


def test_headline_is_the_worst_of_the_plain_loads() -> None:
    busy = Load("plain", 8)
    other = [
        slot(DIRECT, 0.020, busy),
        slot(OURS, 0.029, busy, r2=0.06),
        slot(THEIRS, 0.030, busy, litellm=0.1),
    ]
    result = report([*a_round(0, 0.021, 0.030), *other], [PLAIN, busy])
    assert result["added_p50_ratio"] == pytest.approx(0.9)
    assert result["cpu_ratio"] == max(row["cpu_ratio"][0] for row in result["pass_through"])


def test_routed_query_is_compared_with_its_waves_in_sequence() -> None:
    slots = [*a_round(0, 0.022, 0.030), slot(OURS, 0.092, ROUTED, r2=0.25)]
    (row,) = report(slots, [PLAIN, ROUTED])["routed"]
    assert row[OURS]["added_p50_ms"] == pytest.approx(92 - 4 * 20)
    assert row["added_p50_ms_per_subtask"] == pytest.approx(4.0)


def test_gateway_that_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match="no slot of 'litellm' under plain c=8"):
        cost(a_round(0, 0.022, 0.030), THEIRS, Load("plain", 8))


def test_scripted_provider_speaks_openais_dialect_and_its_plan_is_used() -> None:
    reader = StreamReader()
    assert "".join(piece.text for event in EVENTS["worker"] for piece in reader.feed(event)) == ANSWER
    assert (reader.finish(), reader.is_done, reader.usage is not None) == ("stop", True, True)
    assert parse_completion(COMPLETIONS["worker"]).text == ANSWER
    assert (
        len(Plan.model_validate(json.loads(parse_completion(COMPLETIONS["planner"]).text)).subtasks)
        == NUM_SUBTASKS
    )
    assert Plan.model_validate(PLAN).depth == 2
    (application,) = hosted_config("http://127.0.0.1:1/v1")["applications"]
    routing = RoutingConfig.model_validate(application["deployments"][0]["user_config"])
    routing.check_against(RouterConfig.model_validate(application["args"]).models)
