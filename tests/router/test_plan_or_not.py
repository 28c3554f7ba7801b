"""A query is split only where arithmetic expects a plan to cost less than the direct call."""

import json
from decimal import Decimal
from typing import Any

import pytest

from r2_serve.config import HostedEngineConfig
from r2_serve.errors import EngineRefused, InvalidRequest
from r2_serve.types import Completion, EngineCall, Message, Sampling, Trace, Usage
from tests.support.in_process import Router, allocation_json, plan_json, plan_of, query, routing
from tests.support.virtual_time import run

QUESTION = "Compare the two alpine summits in every respect that a climber may care about. " * 20
"""About 400 tokens."""
PLAN = plan_json("describe the first summit", "describe the second summit", "compare #1 and #2")
HOSTED = HostedEngineConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")


def card(price: str, **fields: Any) -> dict[str, Any]:
    """A reply costs four times as much as a prompt."""
    return {"usd_per_mtok_in": Decimal(price), "usd_per_mtok_out": 4 * Decimal(price), **fields}


CARDS = {
    "small": card("0.1"),
    "large": card("10", expected_tokens=1_000),
    "decomposer": card("0.1"),
    "allocator": card("0.1"),
}


def router_of(*, cards: dict[str, Any] | None = None, virtual: Any = (), **engines: Any) -> Router:
    """`large` is the default model; a plan gives its three steps to `small`."""
    usual = {
        "decomposer": [PLAN],
        "allocator": [allocation_json("small", "small", "small")],
        "small": ["half"],
        "large": ["whole"],
    }
    settings = {"plan": "auto", **dict(virtual)}
    merged = {name: {**CARDS[name], **(cards or {}).get(name, {})} for name in CARDS}
    return Router(routed=routing(**settings), cards=merged, **{**usual, **engines})


def answered(router: Router, text: str = QUESTION, **fields: Any) -> Trace:
    run(router.pipeline.answer(query(text, **fields)))
    return router.trace


def decided(router: Router, text: str = QUESTION, **fields: Any) -> tuple[str, str]:
    decision = answered(router, text, **fields).decision
    assert decision is not None
    return decision.action, decision.reason


def test_plan_that_saves_is_run_and_the_trace_shows_the_expected_costs() -> None:
    trace = answered(router_of())
    decision = trace.decision
    assert decision is not None
    assert (decision.action, decision.reason, decision.baseline) == ("planned", "may_save", "large")
    assert (trace.answer, len(trace.results), decision.expected_tokens) == ("half", 3, 1_000)
    assert decision.planning_usd is not None and decision.plan_usd is not None
    assert decision.planning_usd <= decision.direct_usd / 10
    assert trace.cost_usd < decision.plan_usd < decision.direct_usd


@pytest.mark.parametrize(
    ("reason", "text", "cards", "virtual"),
    [
        ("short", "hi", {}, {}),
        ("nothing_to_save", QUESTION, {}, {"pool": ("large",)}),
        ("planning_too_dear", QUESTION, {"decomposer": card("5")}, {}),
        ("planning_too_dear", QUESTION, {"allocator": card("5")}, {}),
        ("planning_too_dear", QUESTION, {"decomposer": card("0.2"), "large": {"expected_tokens": 20}}, {}),
        ("planning_too_dear", QUESTION, {}, {"planning_share": Decimal("0.005")}),
        ("too_long", QUESTION, {"decomposer": {"context_tokens": 1_100}}, {}),
    ],
)
def test_query_goes_whole_in_one_call_where_no_plan_can_save(
    reason: str, text: str, cards: dict[str, Any], virtual: dict[str, Any]
) -> None:
    router = router_of(cards=cards, virtual=virtual)
    assert decided(router, text) == ("whole", reason)
    assert [call.model for call in router.trace.calls] == ["large"]
    assert router.engines["large"].calls[0].messages == query(text).messages, "the conversation as it is"


def test_query_with_tools_or_images_goes_whole() -> None:
    parts = ({"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": QUESTION})
    hosted = {name: {"engine": HOSTED} for name in CARDS}
    for fields in (
        {"sampling": Sampling(forwarded={"tools": [{"type": "function", "function": {"name": "f"}}]})},
        {"messages": (Message(role="user", content=parts),)},
    ):
        assert decided(router_of(cards=hosted), **fields) == ("whole", "beyond_text")


def test_dear_plan_is_dropped_before_its_first_step() -> None:
    router = router_of(allocator=[allocation_json("large", "large", "large")])
    trace = answered(router)
    assert trace.decision is not None
    assert (trace.decision.action, trace.decision.reason) == ("whole", "plan_too_dear")
    assert trace.decision.dropped_plan == plan_of(
        "describe the first summit", "describe the second summit", "compare #1 and #2"
    )
    assert [call.stage for call in trace.calls] == ["decompose", "allocate", "execute"]
    assert (trace.answer, len(trace.results)) == ("whole", 1)
    assert trace.decision.plan_usd is not None and trace.decision.plan_usd > trace.decision.direct_usd


def test_query_without_a_valid_plan_goes_whole() -> None:
    assert decided(router_of(decomposer=["no plan"])) == ("whole", "no_valid_plan")


def test_planning_reserves_no_more_than_its_share() -> None:
    """The decomposer's replies are limited to what 10 % of the direct call pay for, and never asked again."""
    router = router_of(cards={"decomposer": card("1.6")}, decomposer=["x " * 5_000])
    trace = answered(router)
    (call,) = router.engines["decomposer"].calls
    assert call.sampling.max_tokens is not None and 450 <= call.sampling.max_tokens < 1_024
    planning_usd = trace.cost_usd - trace.worker_cost_usd
    assert trace.decision is not None
    assert 0 < planning_usd <= trace.decision.direct_usd / 10


def test_dropped_plan_counts_as_one_query_with_the_calls_that_were_made_in_the_end() -> None:
    router = router_of(allocator=[allocation_json("large", "large", "large")])
    assert decided(router) == ("whole", "plan_too_dear")
    demand = router.pipeline.demand
    with demand.query("r2"):
        expected = demand.forecast()
    assert len(demand._history["r2"]._arrivals_s) == 2, "the query and the one that is open"
    assert sum(expected["large"].planned) > 0 and "small" not in expected


def test_step_that_runs_away_ends_the_plan_and_the_bill_stays_below_210_percent() -> None:
    router = router_of(small=["word " * 100_000], cards={"small": card("4")})
    trace = answered(router)
    assert trace.decision is not None
    assert (trace.decision.action, trace.decision.reason) == ("whole", "ran_away")
    assert trace.answer == "whole"
    assert trace.cost_usd <= trace.decision.direct_usd * Decimal("2.10")
    assert trace.results[0].cost_usd < trace.cost_usd, "the dropped step is not a part of the result"


def test_limits_of_inner_steps_leave_a_plan_below_110_percent() -> None:
    router = router_of(small=["word " * 200])
    trace = answered(router)
    limits = [call.sampling.max_tokens for call in router.engines["small"].calls]
    assert limits[2] == 1_024, "that of the model: the plan sets none for the answer"
    assert all(limit is not None and limit >= 256 for limit in limits[:2])
    assert trace.decision is not None and trace.decision.action == "planned"
    assert trace.cost_usd <= trace.decision.direct_usd * Decimal("1.10")


def test_explicit_wishes_are_obeyed() -> None:
    """Each of them would go whole by the arithmetic, or be split."""
    own = plan_of("first", "second #1")
    assert decided(router_of(), "hi", plan=own) == ("planned", "asked")
    assert decided(router_of(), "hi", policy="learned") == ("planned", "asked")
    assert decided(router_of(), "hi", policy="all:large") == ("planned", "asked")
    assert answered(router_of(), "hi", is_plan_only=True).plan is not None
    assert decided(router_of(virtual={"plan": "always"}), "hi") == ("planned", "configured")
    assert decided(router_of(virtual={"plan": "never"})) == ("whole", "configured")


@pytest.mark.parametrize("model", ["small", "large"])
def test_policy_one_sends_the_query_whole_to_its_model(model: str) -> None:
    for router, fields in (
        (router_of(), {"policy": f"one:{model}"}),
        (router_of(virtual={"policy": f"one:{model}", "plan": "always"}), {}),
    ):
        assert decided(router, **fields) == ("whole", "asked")
        assert [call.model for call in router.trace.calls] == [model]


def test_policy_one_auto_asks_the_allocator_where_that_is_cheap_and_stays_on_its_model() -> None:
    router = router_of(allocator=[allocation_json("small")])
    for stages in (["allocate", "execute"], ["execute"]):
        assert decided(router, QUESTION * 3, policy="one:auto", session="s") == ("whole", "asked")
        assert [call.stage for call in router.trace.calls] == stages
        assert router.trace.results[0].model == "small"
    assert decided(router, "hi there", policy="one:auto") == ("whole", "asked")
    assert [call.model for call in router.trace.calls] == ["large"], "too short to pay for an allocation"


def test_policy_one_of_an_unknown_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="one:MODEL"):
        answered(router_of(), policy="one:decomposer")


def test_expected_answer_is_that_of_the_card_within_the_requests_limit() -> None:
    cases = ((None, 2_000, 2_000), (300, 2_000, 300), (2_000, None, 1_024), (None, None, 16))
    for limit, stated, expected in cases:
        large = card("10", **({"expected_tokens": stated} if stated else {}))
        models = {"decomposer": [PLAN], "allocator": ["x"], "small": ["s"], "large": ["l"]}
        router = Router(routed=routing(plan="auto"), cards={**CARDS, "large": large}, **models)
        decision = answered(router, "hi", sampling=Sampling(max_tokens=limit)).decision
        assert decision is not None and decision.expected_tokens == expected


# -- what steps read --


def test_inner_steps_read_what_they_need() -> None:
    """Steps that need no more get the system messages, and the last one all of the conversation."""
    steps = [
        {"id": 1, "text": "describe the summit", "depends_on": [], "needs_query": True},
        {"id": 2, "text": "translate #1", "depends_on": [1], "needs_query": False},
        {"id": 3, "text": "answer with #2", "depends_on": [2], "needs_query": False},
    ]
    messages = (Message(role="system", content="Be brief."), Message(role="user", content=QUESTION))
    router = router_of(
        virtual={"context": "needed", "plan": "always"}, decomposer=[json.dumps({"subtasks": steps})]
    )
    answered(router, messages=messages)
    read = ["".join(m.text for m in call.messages) for call in router.engines["small"].calls]
    assert [QUESTION in text for text in read] == [True, False, True]
    assert ["Be brief." in text for text in read] == [True, True, True]
    assert "half" in read[1], "the answer that it names"
    assert QUESTION not in router.prompts("allocator")[0]


# -- several samples by one prompt --


class Planner:
    """Takes `n`, or refuses it, as hosted models do."""

    def __init__(self, *, takes_n: bool, ignores_n: bool = False) -> None:
        self.calls: list[EngineCall] = []
        self._takes_n, self._ignores_n = takes_n, ignores_n

    async def generate(self, call: EngineCall) -> Completion:
        self.calls.append(call)
        num = call.sampling.num_choices
        if num > 1 and not self._takes_n:
            raise EngineRefused("n must be 1")
        others = () if self._ignores_n else (PLAN,) * (num - 1)
        usage = Usage(prompt_tokens=100, completion_tokens=50 * (1 + len(others)))
        return Completion(text=PLAN, others=others, usage=usage, finish_reason="stop")


@pytest.mark.parametrize(
    ("planner", "first", "second"),
    [
        (Planner(takes_n=True), [3], [3]),
        (Planner(takes_n=False), [3, 1, 1, 1], [1, 1, 1]),
        (Planner(takes_n=True, ignores_n=True), [3, 1, 1], [1, 1, 1]),
    ],
    ids=["taken", "refused", "ignored"],
)
def test_samples_are_asked_by_one_prompt_until_the_provider_shows_that_it_takes_none(
    planner: Planner, first: list[int], second: list[int]
) -> None:
    virtual = {"plan": "always", "decomposer": {"num_samples": 3, "good_enough": None}}
    router = router_of(cards={"decomposer": {"engine": HOSTED}}, virtual=virtual, decomposer=planner)
    for expected in (first, second):
        planner.calls.clear()
        trace = answered(router)
        assert [call.sampling.num_choices for call in planner.calls] == expected
        assert (trace.num_plan_samples, trace.num_plan_rejected) == (3, 0)


def test_local_decomposer_is_asked_for_each_sample() -> None:
    router = router_of(virtual={"plan": "always", "decomposer": {"num_samples": 3, "good_enough": None}})
    answered(router)
    assert [call.sampling.num_choices for call in router.engines["decomposer"].calls] == [1, 1, 1]


def test_long_document_is_answered_by_the_model_that_holds_it() -> None:
    cards = {"large": {"context_tokens": 8_000}, "small": {"context_tokens": 64_000}}
    trace = answered(router_of(cards=cards, virtual={"plan": "never"}), "word " * 30_000)
    assert [call.model for call in trace.calls] == ["small"]
