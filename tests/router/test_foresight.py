"""Nothing is paid and then refused: what can be known is checked first, and the rest finds another way."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from r2_serve.calls.budget import Budget, Need
from r2_serve.calls.ledger import Ledger
from r2_serve.config import HostedEngineConfig, LimitsConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import BudgetExceeded, InvalidRequest, QuotaExceeded, R2Error
from r2_serve.types import Answer, Query
from tests.support.in_process import Router, allocation_json, plan_json, plan_of, query, routing
from tests.support.virtual_time import run

TEXT = "The quick brown fox jumps over the lazy dog near the old river bank today. "
HOSTED = HostedEngineConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")


class Key:
    """The purse of a key with `left` USD."""

    def __init__(self, left: str) -> None:
        self.left, self.held = Decimal(left), Decimal(0)

    def left_usd(self) -> Decimal:
        return self.left - self.held

    def hold(self, usd: Decimal) -> None:
        self.held += usd
        assert self.held <= self.left

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self.held -= held_usd
        self.left -= spent_usd

    def refusal(self) -> QuotaExceeded:
        return QuotaExceeded("the budget of the key is used up")


def router(
    *,
    contexts: dict[str, int] | None = None,
    limits: dict[str, Any] | None = None,
    max_tokens: int = 100,
    **engines: Any,
) -> Router:
    """Two pool models that a provider hosts; the plan has two steps, one for each."""
    defaults = {
        "decomposer": [plan_json("one", "two #1")],
        "allocator": [allocation_json("small", "large")],
        "small": ["answer of small"],
        "large": ["answer of large"],
    }
    cards: dict[str, dict[str, Any]] = {
        name: {"engine": HOSTED, "max_tokens": max_tokens} for name in ("small", "large")
    }
    cards["large"] |= {"usd_per_mtok_in": Decimal(2), "usd_per_mtok_out": Decimal(4)}
    for name, tokens in (contexts or {}).items():
        cards.setdefault(name, {})["context_tokens"] = tokens
    routed = routing(limits=LimitsConfig.model_validate(limits or {}))
    return Router(routed=routed, cards=cards, **{**defaults, **engines})


def answered(made: Router, asked: Query, purse: Key | None = None) -> Answer:
    return run(made.pipeline.answer(asked, purse=purse))


def refused(made: Router, asked: Query, purse: Key | None = None) -> R2Error:
    with pytest.raises(R2Error) as caught:
        answered(made, asked, purse)
    return caught.value


def num_calls(made: Router) -> int:
    return sum(len(engine.calls) for engine in made.engines.values())


def test_query_that_no_model_holds_is_refused_before_its_first_call() -> None:
    made = router(contexts={"small": 1_000, "large": 2_000})
    error = refused(made, query(TEXT * 200))
    assert isinstance(error, InvalidRequest)
    assert (error.status, error.code, num_calls(made)) == (400, "context_length_exceeded", 0)
    assert "the context of large holds 2000" in error.message


def test_long_query_is_answered_by_the_models_that_hold_it() -> None:
    """150,000 characters once cost four calls and were then refused."""
    made = router(contexts={"small": 32_768, "large": 400_000}, limits={"deadline_s": 1000})
    answer = answered(made, query(TEXT * 2_000))
    assert (answer.text, set(answer.models)) == ("answer of large", {"large"})


def test_model_that_the_client_pinned_and_that_is_too_small_is_refused_before_any_call() -> None:
    made = router(contexts={"small": 1_000})
    asked = query(TEXT * 200, plan=plan_of("one", "two #1"), pinned={1: "large", 2: "small"})
    assert (refused(made, asked).code, num_calls(made)) == ("context_length_exceeded", 0)


def test_own_plan_that_the_budget_does_not_pay_for_is_refused_before_any_call() -> None:
    made = router()
    plan = plan_of(*["one"] * 4)
    pinned = dict.fromkeys(range(1, 5), "large")
    error = refused(made, query(plan=plan, pinned=pinned, max_cost_usd=Decimal("0.0015")))
    assert isinstance(error, BudgetExceeded) and "the 4 calls of the plan" in error.message
    assert num_calls(made) == 0
    assert answered(made, query(plan=plan, pinned=pinned, max_cost_usd=Decimal("0.0035"))).num_subtasks == 4


@pytest.mark.parametrize("left", ["0.0006", "0.002", "0.003", "0.004", "0.006", "0.01"])
def test_key_is_either_answered_or_refused_for_nothing(left: str) -> None:
    """Whatever is left: planning never takes the money that the answer needs."""
    made, purse = router(), Key(left)
    try:
        answer = answered(made, query(), purse)
    except QuotaExceeded:
        assert num_calls(made) == 0
    else:
        assert answer.text.startswith("answer of")
        assert purse.left >= 0
    assert purse.held == 0


def test_money_of_a_running_plan_is_not_taken_by_another_request_of_the_key() -> None:
    purse = Key("1")
    first, second = (Ledger(Budget(), purse=purse).allowance for _ in range(2))
    with first.prepaid(Decimal("0.8")):
        assert not second.has_room(Need(1, 10, Decimal("0.3")))
        first.begin(10, Decimal("0.7"))
        assert not second.has_room(Need(1, 10, Decimal("0.3")))
        first.end(10, Decimal("0.7"), 10, Decimal("0.1"))
        assert first.has_room(Need(1, 10, Decimal("0.9")))
    assert second.has_room(Need(1, 10, Decimal("0.9"))) and purse.held == 0


def test_step_whose_inputs_are_too_long_for_its_model_goes_to_one_that_holds_them() -> None:
    made = router(
        contexts={"large": 1_000},
        max_tokens=20_000,
        allocator=[allocation_json("small", "large")],
        small=[TEXT * 200, "from small"],
    )
    answer = answered(made, query())
    assert (answer.text, answer.models) == ("from small", ("small",))


def test_step_that_no_model_holds_reads_shorter_answers() -> None:
    replies = {"small": [TEXT * 250], "large": ["short enough"]}
    made = router(contexts={"small": 1_500, "large": 1_500}, max_tokens=20_000, **replies)
    answer = answered(made, query())
    assert answer.text == "short enough"
    (prompt,) = [json.dumps([m.wire for m in call.messages]) for call in made.engines["large"].calls]
    assert "[cut:" in prompt and 500 < prompt.count("quick") * len(TEXT) < 6_000


def test_failing_step_gives_all_that_was_held_back() -> None:
    made, purse = router(small=ScriptedEngine([R2Error("broken")])), Key("1")
    refused(made, query(), purse)
    assert purse.held == 0
