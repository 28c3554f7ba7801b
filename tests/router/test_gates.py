"""A gate asks models in turn until there is evidence: what is asked, kept, shown, paid for and told."""

from __future__ import annotations

import asyncio
import math
from decimal import Decimal
from typing import Any

import pytest

from r2_serve.config import GateConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import (
    BudgetExceeded,
    ConfigError,
    DeadlineExceeded,
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    SubtaskFailed,
)
from r2_serve.types import Answer, Completion, Delta, GateNote, GateSpec, Message, Plan, Query, Usage
from tests.support.in_process import Router, allocation_json, plan_json, plan_of, query, routing
from tests.support.virtual_time import now_s, run

AGREE = {"kind": "agreement", "by": "number"}
POOL = ("small", "medium", "large")


def gate(*asked: str, accept: tuple[dict[str, Any], ...] = (AGREE,)) -> GateConfig:
    return GateConfig.model_validate({"ask": asked or POOL, "accept": accept})


Cards = dict[str, dict[str, Any]]
SURE: Cards = {name: {"capabilities": {"logprobs": True}} for name in POOL}


def gated(*, virtual: dict[str, Any] | None = None, cards: Cards | None = None, **engines: Any) -> Router:
    """A router whose virtual model has the gate `careful`; by default it answers every query whole."""
    usual: dict[str, Any] = {"pool": POOL, "gates": {"careful": gate()}, "policy": "one:careful"}
    models = {"small": ["The answer is 4."], "medium": ["It is 5"], "large": ["It is 6"]}
    replies = {"decomposer": ["?"], "allocator": ["?"], **models, **engines}
    return Router(routed=routing(**{**usual, **(virtual or {})}), cards=cards, **replies)


async def ask(router: Router, asked: Query | None = None) -> tuple[Answer, list[str]]:
    pieces: list[str] = []

    async def keep(piece: Delta) -> None:
        pieces.append(piece.text)

    return await router.pipeline.answer(asked or query("2 + 2?"), keep), pieces


def note(router: Router, step: int = 1) -> GateNote:
    found = router.trace.results[step - 1].gate
    assert found is not None
    return found


def outcomes(router: Router, step: int = 1) -> list[tuple[str, str, str]]:
    return [(ask.model, ask.outcome, ask.evidence) for ask in note(router, step).asked]


def num_calls(router: Router) -> dict[str, int]:
    return {name: len(router.engines[name].calls) for name in POOL}


def test_two_answers_that_agree_end_the_gate() -> None:
    router = gated(medium=["So we get 4"])
    answer, pieces = run(ask(router))
    assert (answer.text, answer.models) == ("So we get 4", ("small", "medium"))
    assert pieces == [], "an answer that is not surely kept is shown whole, by the endpoint"
    assert outcomes(router) == [("small", "escalated", "agreement"), ("medium", "accepted", "agreement")]
    assert num_calls(router) == {"small": 1, "medium": 1, "large": 0}
    assert note(router).asked[1].reason == "agrees with small (number)"


def test_answer_of_the_last_model_needs_no_evidence_and_is_streamed() -> None:
    router = gated()
    answer, pieces = run(ask(router))
    assert (answer.text, "".join(pieces)) == ("It is 6", "It is 6")
    assert len(pieces) == 3, "word by word"
    assert [outcome for _, outcome, _ in outcomes(router)] == ["escalated", "escalated", "accepted"]
    assert note(router).kept == "large"


def test_every_ask_of_a_gate_costs_what_its_calls_cost() -> None:
    router = gated()
    answer, _ = run(ask(router))
    assert sum((ask.cost_usd for ask in note(router).asked), Decimal(0)) == answer.cost_usd > 0
    assert router.trace.results[0].cost_usd == answer.cost_usd


@pytest.mark.parametrize(
    ("by", "one", "other", "agree"),
    [
        ("text", "The Zugspitze.", "the zugspitze", True),
        ("text", "Zugspitze", "Mont Blanc", False),
        ("number", "1,234", '{"answer": "1234"}', True),
        ("math", "$\\frac{1}{2}$", "\\frac{1}{2}", True),
        ("choice", "The answer is (B)", "B", True),
        ("literal", "[1, 2]", "[1,2]", True),
    ],
)
def test_answers_agree_by_the_rule_that_is_named(by: str, one: str, other: str, agree: bool) -> None:
    rule = {"kind": "agreement", "by": by}
    router = gated(virtual={"gates": {"careful": gate(accept=(rule,))}}, small=[one], medium=[other])
    run(ask(router))
    assert (num_calls(router)["large"] == 0) is agree


def test_replies_without_an_answer_never_agree() -> None:
    router = gated(small=["I do not know."], medium=["I do not know."])
    run(ask(router))
    assert note(router).asked[1].reason == "no answer was found (number)"
    assert note(router).kept == "large"


def test_three_votes_need_three_models() -> None:
    rule = {"kind": "agreement", "by": "number", "votes": 3}
    router = gated(virtual={"gates": {"careful": gate(accept=(rule,))}}, medium=["4"], large=["4"])
    run(ask(router))
    assert num_calls(router) == {"small": 1, "medium": 1, "large": 1}


@pytest.mark.parametrize(("logprob", "kept"), [(-0.01, "small"), (-2.0, "large"), (None, "large")])
def test_confidence_of_the_tokens_is_evidence(logprob: float | None, kept: str) -> None:
    sure = Completion(
        text="4", usage=Usage(), finish_reason="stop", logprobs=None if logprob is None else (logprob,)
    )
    rule = {"kind": "confidence", "at_least": 0.9}
    config = {"gates": {"careful": gate("small", "large", accept=(rule,))}}
    router = gated(virtual=config, cards=SURE, small=[sure])
    run(ask(router))
    assert note(router).kept == kept
    assert router.engines["small"].calls[0].sampling.logprobs


def test_confidence_is_asked_of_models_that_report_it_alone() -> None:
    rule = {"kind": "confidence", "at_least": 0.9}
    mute: Cards = {**SURE, "small": {"capabilities": {"logprobs": False}}}
    router = gated(virtual={"gates": {"careful": gate(accept=(rule,))}}, cards=mute)
    run(ask(router))
    asked = {name: router.engines[name].calls[0].sampling.logprobs for name in POOL}
    assert asked == {"small": False, "medium": True, "large": False}, "the last answer needs no evidence"


@pytest.mark.parametrize(
    ("word", "kept"), [("Yes.", "small"), ("no, it is 5", "large"), ("Perhaps", "large")]
)
def test_checker_model_is_evidence_and_is_paid(word: str, kept: str) -> None:
    rule = {"kind": "checker", "model": "medium"}
    config = gate("small", "large", accept=(rule,))
    router = gated(virtual={"gates": {"careful": config}}, medium=[word])
    answer, _ = run(ask(router))
    assert note(router).kept == kept
    assert "The answer is 4." in router.prompts("medium")[0]
    assert [call.stage for call in router.trace.calls][:2] == ["execute", "check"]
    assert answer.cost_usd == sum(call.cost_usd for call in router.trace.calls)
    assert sum(ask.cost_usd for ask in note(router).asked) == answer.cost_usd
    assert answer.models[0] == "small" and "medium" not in answer.models


def test_checker_that_fails_accepts_nothing() -> None:
    rule = {"kind": "checker", "model": "medium"}
    config = gate("small", "large", accept=(rule,))
    router = gated(virtual={"gates": {"careful": config}}, medium=[EngineRefused("no")])
    run(ask(router))
    assert note(router).asked[0].reason == "medium did not check it: EngineRefused"


def says_four(question: str, answer: str) -> bool:
    return "2 + 2" in question and "4" in answer


async def says_six(question: str, answer: str) -> bool:
    await asyncio.sleep(0)
    return "6" in answer


def breaks(question: str, answer: str) -> bool:
    raise ValueError("no such answer")


@pytest.mark.parametrize(
    ("function", "kept", "reason"),
    [
        ("says_four", "small", "says yes"),
        ("says_six", "large", "says no"),
        ("breaks", "large", "failed: ValueError"),
    ],
)
def test_own_function_is_evidence(function: str, kept: str, reason: str) -> None:
    rule = {"kind": "check", "function": f"{__name__}:{function}"}
    router = gated(virtual={"gates": {"careful": gate("small", "large", accept=(rule,))}})
    asyncio.run(ask(router))
    assert note(router).kept == kept
    assert note(router).asked[0].reason.endswith(reason)


def test_second_kind_of_evidence_is_tried_after_the_first() -> None:
    rules = (AGREE, {"kind": "check", "function": f"{__name__}:says_four"})
    router = gated(virtual={"gates": {"careful": gate(accept=rules)}})
    asyncio.run(ask(router))
    assert outcomes(router) == [("small", "accepted", "check")]


def test_function_that_cannot_be_imported_is_named_when_the_routing_is_taken() -> None:
    rule = {"kind": "check", "function": "no_such_module:check"}
    with pytest.raises(ConfigError, match=r"no_such_module:check.*importing 'no_such_module' failed"):
        gated().pipeline.route_by(routing(pool=POOL, gates={"careful": gate(accept=(rule,))}))


# -- where a gate may stand ----------------------------------------------------------------------------------


def test_gate_redoes_its_own_step_alone() -> None:
    """Siblings are asked once and do not wait; the steps after it wait for the answer that is kept."""
    plan = plan_of("first", "second", "sum of #1 and #2")
    replies = {"first": "4", "second": "7"}

    def small(messages: Any, sampling: Any) -> str:
        return next(
            (text for word, text in replies.items() if f"{word}\n</step>" in messages[-1].content), "11"
        )

    router = gated(
        virtual={"policy": "learned"},
        small=ScriptedEngine(small, delay_s=1),
        medium=ScriptedEngine(["5"], delay_s=1),
        large=ScriptedEngine(["5"], delay_s=1),
    )
    asked = query(plan=plan, pinned={1: "careful", 2: "small", 3: "small"})

    async def seconds() -> float:
        await ask(router, asked)
        return now_s()

    assert run(seconds()) == pytest.approx(4.0), "three asks of the gate, then the last step"
    assert [len(router.engines[name].calls) for name in POOL] == [3, 1, 1]
    second = router.trace.results[1]
    assert [call.model for call in router.trace.calls[2:]] == ["medium", "large", "small"]
    assert "5" in router.prompts("small")[-1] and "=> 4" not in router.prompts("small")[-1]
    assert router.trace.results[0].gate is not None and second.gate is None


def test_allocator_may_choose_a_gate() -> None:
    router = gated(
        virtual={"policy": "learned", "plan": "always"},
        decomposer=[plan_json("add", "say #1")],
        allocator=[allocation_json("careful", "small")],
        medium=["4"],
    )
    answer, _ = run(ask(router))
    assert router.trace.allocation is not None
    assert router.trace.allocation.models == ("careful", "small")
    assert answer.text == "The answer is 4."
    assert "- careful (slm; " in router.prompts("allocator")[0]
    assert "asks small, then medium, then large" in router.prompts("allocator")[0]


def test_compact_allocator_is_not_offered_gates() -> None:
    compact = {name: {"codec": "compact"} for name in ("decomposer", "allocator", *POOL)}
    routed = routing(pool=POOL, gates={"careful": gate()})
    words = {name: ["7"] for name in POOL}
    router = Router(
        routed=routed, cards=compact, decomposer=["n1 + n2 ; #1 + n1"], allocator=["@1 @1"], **words
    )
    run(router.pipeline.answer(query("3 coins and 4 coins")))
    assert "careful" not in router.prompts("allocator")[0]
    assert router.trace.allocation_fallback is None


@pytest.mark.parametrize("policy", ["all:careful", "final-only:small,careful"])
def test_policies_take_a_gate_where_they_take_a_model(policy: str) -> None:
    router = gated(virtual={"policy": policy, "plan": "always"}, decomposer=[plan_json("add", "say #1")])
    run(ask(router))
    assert note(router, 2).name == "careful"
    assert (router.trace.results[0].gate is not None) is (policy == "all:careful")


def test_request_names_a_gate_for_the_whole_query() -> None:
    router = gated(virtual={"policy": "learned"}, medium=["4"])
    answer, _ = run(ask(router, query("2 + 2?", gate="careful")))
    assert (router.trace.policy, answer.num_subtasks, note(router).kept) == ("one:careful", 1, "medium")
    assert router.engines["decomposer"].calls == []


def test_request_brings_its_own_gate() -> None:
    own = GateSpec.model_validate({"ask": ("small", "large"), "accept": (AGREE,)})
    router = gated(virtual={"policy": "learned", "gates": {}}, large=["4"])
    run(ask(router, query("2 + 2?", gate=own)))
    assert (note(router).name, note(router).kept) == ("request", "large")


def test_gate_of_a_request_answers_each_step_of_its_own_plan() -> None:
    router = gated(virtual={"policy": "learned"})
    run(ask(router, query(plan=plan_of("one", "two #1"), gate="careful")))
    assert [result.gate is not None for result in router.trace.results] == [True, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate": "nothing"}, "no gate 'nothing'; choose one of ['careful']"),
        ({"gate": "careful", "policy": "all:small"}, "send one of the two"),
        (
            {"gate": GateSpec.model_validate({"ask": ("small", "gpt-9"), "accept": (AGREE,)})},
            "the gate asks 'gpt-9'",
        ),
        (
            {
                "gate": GateSpec.model_validate(
                    {"ask": ("small", "large"), "accept": ({"kind": "check", "function": "os:system"},)}
                )
            },
            "a request cannot name code of the server",
        ),
    ],
)
def test_wrong_gate_of_a_request_is_refused_before_any_call(fields: dict[str, Any], message: str) -> None:
    router = gated()
    with pytest.raises(InvalidRequest) as refused:
        run(ask(router, query(**fields)))
    assert message in refused.value.message
    assert num_calls(router) == dict.fromkeys(POOL, 0)


# -- failures, budgets, cancellation -------------------------------------------------------------------------


def test_model_that_fails_is_passed_over_without_its_fallbacks() -> None:
    router = gated(small=[EngineUnavailable("down")], medium=["4"], large=["4"])
    run(ask(router))
    assert outcomes(router)[0] == ("small", "failed", "error")
    assert note(router).kept == "large"
    assert len(router.engines["small"].calls) == 2, "the usual tries of one model"


def test_best_answer_is_kept_if_the_strongest_model_fails() -> None:
    router = gated(virtual={"fallbacks": "typed"}, large=[EngineUnavailable("down")])
    answer, _ = run(ask(router))
    assert (answer.text, note(router).kept, note(router).evidence) == ("It is 5", "medium", None)


def test_gate_fails_only_if_all_its_models_fail() -> None:
    router = gated(**{name: [EngineUnavailable("down")] for name in POOL})
    with pytest.raises(SubtaskFailed):
        run(ask(router))


def test_reply_that_broke_off_after_its_first_word_is_not_replaced() -> None:
    class Breaks(ScriptedEngine):
        async def stream(self, call: Any) -> Any:
            yield Delta(text="It")
            raise EngineUnavailable("cut")

    router = gated(large=Breaks())
    with pytest.raises(SubtaskFailed):
        run(ask(router))


def test_budget_that_pays_for_the_first_models_alone_keeps_their_answer() -> None:
    dear: Cards = {"large": {"usd_per_mtok_in": Decimal(1000), "usd_per_mtok_out": Decimal(1000)}}
    router = gated(cards=dear)
    answer, _ = run(ask(router, query("2 + 2?", max_cost_usd=Decimal("0.01"))))
    assert (answer.text, note(router).kept) == ("It is 5", "medium")
    assert outcomes(router)[-1] == ("large", "refused", "budget")


def test_budget_that_pays_for_no_model_is_refused_before_any_call() -> None:
    router = gated()
    with pytest.raises(BudgetExceeded):
        run(ask(router, query("2 + 2?", max_cost_usd=Decimal("0.0000001"))))
    assert num_calls(router) == dict.fromkeys(POOL, 0)


def test_cancelled_gate_leaves_no_call_open() -> None:
    router = gated(medium=ScriptedEngine(["5"], delay_s=100))

    async def cancel() -> None:
        task = asyncio.create_task(router.pipeline.answer(query("2 + 2?")))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancel())
    assert [call.outcome for call in router.trace.calls] == ["ok", "cancelled"]


def test_deadline_ends_a_gate_and_its_calls() -> None:
    router = gated(medium=ScriptedEngine(["5"], delay_s=100))
    with pytest.raises(DeadlineExceeded):
        run(ask(router, query("2 + 2?", deadline_s=5)))
    assert [call.outcome for call in router.trace.calls] == ["ok", "cancelled"]


# -- turns, able models, cost --------------------------------------------------------------------------------


TOOLS = {"tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]}


def called(arguments: str) -> Completion:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body: dict[str, object] = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    return Completion(text="", usage=Usage(), finish_reason="tool_calls", body=body)


def test_calls_of_tools_agree_if_name_and_arguments_are_equal() -> None:
    able = {name: {"capabilities": {"tools": True}} for name in POOL}
    usual: dict[str, Any] = {"pool": POOL, "gates": {"careful": gate()}, "policy": "one:careful"}
    router = Router(
        routed=routing(**usual),
        cards=able,
        decomposer=["?"],
        allocator=["?"],
        small=[called('{"a": 2, "b": 2}')],
        medium=[called('{"b":2,"a":2}')],
        large=["6"],
    )
    shown: list[Delta] = []

    async def keep(piece: Delta) -> None:
        shown.append(piece)

    with_tools = query("2 + 2?").model_copy(
        update={"sampling": query().sampling.model_copy(update={"forwarded": TOOLS})}
    )
    answer = run(router.pipeline.answer(with_tools, keep))
    assert note(router).asked[1].reason == "agrees with small (tools)"
    assert answer.finish_reason == "tool_calls"
    first, last = (piece.body["choices"][0] for piece in shown if piece.body)  # type: ignore[index]
    assert first["delta"]["tool_calls"][0]["index"] == 0
    assert (first["finish_reason"], last["finish_reason"]) == (None, "tool_calls")


def test_models_that_cannot_take_the_query_are_left_out() -> None:
    cards = {"large": {"capabilities": {"vision": True}}, "medium": {"capabilities": {"vision": True}}}
    usual: dict[str, Any] = {"pool": POOL, "gates": {"careful": gate()}, "policy": "one:careful"}
    replies = {"small": ["4"], "medium": ["5"], "large": ["5"]}
    router = Router(routed=routing(**usual), cards=cards, decomposer=["?"], allocator=["?"], **replies)
    parts = (
        {"type": "text", "text": "2 + 2?"},
        {"type": "image_url", "image_url": {"url": "data:image/png,x"}},
    )
    run(router.pipeline.answer(query(messages=(Message(role="user", content=parts),))))
    assert [ask.model for ask in note(router).asked] == ["medium", "large"]


def priced(*, whole: str | None, direct: int, plan: str = "auto") -> Router:
    cards = {
        "large": {"usd_per_mtok_in": Decimal(direct), "usd_per_mtok_out": Decimal(direct)},
        **{name: {"usd_per_mtok_in": Decimal(1), "usd_per_mtok_out": Decimal(1)} for name in POOL[:2]},
    }
    routed = routing(pool=POOL, gates={"careful": gate()}, whole=whole, plan=plan)
    replies = {"small": ["4"], "medium": ["4"], "large": ["4"]}
    return Router(routed=routed, cards=cards, decomposer=["?"], allocator=["?"], **replies)


@pytest.mark.parametrize(
    ("whole", "direct", "asked"),
    [(None, 100, ["large"]), ("careful", 100, ["small", "medium"]), ("careful", 3, ["large"])],
)
def test_gate_answers_queries_whole_where_it_is_expected_to_cost_less_than_the_direct_call(
    whole: str | None, direct: int, asked: list[str]
) -> None:
    router = priced(whole=whole, direct=direct)
    run(ask(router))
    assert [call.model for call in router.trace.calls] == asked
    assert router.trace.decision is not None
    assert (router.trace.decision.action, router.trace.decision.reason) == ("whole", "short")


def test_gate_answers_queries_whole_where_nothing_is_split() -> None:
    router = priced(whole="careful", direct=100, plan="never")
    run(ask(router))
    assert (note(router).name, router.trace.session) == ("careful", None)


def test_expected_cost_follows_how_often_the_gate_goes_on() -> None:
    router = priced(whole="careful", direct=3)
    virtual = router.pipeline.routing.virtual_models["r2"]
    asked = query("2 + 2?", gate="careful")
    for _ in range(60):
        run(router.pipeline.answer(asked))
    gates = router.pipeline.shelf.of(asked, router.pipeline.routing, router.pool, ())
    careful = gates.get("careful")
    assert careful is not None and virtual.gates
    first, second, third = gates.reach.shares(careful, POOL)
    assert (first, second) == (1.0, 1.0), "one answer alone cannot agree"
    assert third < 0.05
    run(ask(router))
    assert router.trace.calls[0].model == "small", (
        "now the gate is known to be cheaper than 3 times the price"
    )


def test_plan_that_has_to_save_counts_every_model_of_a_gate() -> None:
    router = priced(whole=None, direct=100)
    long = "What is 2 + 2? " * 400
    router.engines["decomposer"] = ScriptedEngine([plan_json("add", "say #1")])
    assert run(router.pipeline.answer(query(long))).text == "4"
    decision = router.trace.decision
    assert decision is not None and math.isfinite(decision.direct_usd)
    assert router.trace.cost_usd <= decision.direct_usd * 2


def test_single_plan_is_asked_by_the_gate_as_the_conversation_itself() -> None:
    router = gated()
    run(ask(router, query("2 + 2?", plan=Plan.single("2 + 2?"), gate="careful")))
    assert router.prompts("small") == ["2 + 2?"]
