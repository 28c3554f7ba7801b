"""Budgets cannot be overspent by calls that run at once, and the sums are exact."""

import asyncio
import contextlib
import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.calls.budget import Budget
from r2_serve.calls.estimates import Prompt
from r2_serve.calls.ledger import Ledger, Reservation, total_cost_usd
from r2_serve.config import HostedEngineConfig
from r2_serve.errors import (
    AnswerWithheld,
    BudgetExceeded,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
)
from r2_serve.types import CallRecord, Message, Usage
from tests.support.cpu import loops
from tests.support.in_process import model, user

CARD = model("small", usd_per_mtok_in=Decimal("0.37"), usd_per_mtok_out=Decimal("1.13"))
PROMPT = Prompt(user("one two three"))


def reserve(ledger: Ledger, max_tokens: int = 10, text: str = "one two three") -> Reservation:
    return ledger.reserve(CARD, Prompt(user(text)), max_tokens, stage="execute")


def usages(calls: list[CallRecord]) -> Usage:
    return sum((c.usage for c in calls), Usage())


budgets = st.builds(
    Budget,
    max_calls=st.none() | st.integers(0, 6),
    max_tokens=st.none() | st.integers(0, 400),
    max_cost_usd=st.none() | st.decimals("0", "0.0005", places=7),
)


@given(budgets, st.data())
def test_no_order_of_calls_overspends(budget: Budget, data: st.DataObject) -> None:
    """Starts, ends, failures and cancellations interleave; each call uses anything up to its bound."""
    ledger = Ledger(budget)
    under_way: list[Reservation] = []
    for _ in range(data.draw(st.integers(0, 25))):
        if not under_way or data.draw(st.booleans()):
            with contextlib.suppress(BudgetExceeded):
                under_way.append(
                    reserve(ledger, data.draw(st.integers(1, 60)), "x" * data.draw(st.integers(0, 100)))
                )
        else:
            call = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            end = data.draw(st.sampled_from(["ok", "failed", "refused", "cancelled"]))
            if end == "ok":
                used_in, used_out = (
                    data.draw(st.integers(0, most))
                    for most in (call.bound.prompt_tokens, call.bound.completion_tokens)
                )
                call.settle(Usage(prompt_tokens=used_in, completion_tokens=used_out))
            else:
                error = {
                    "failed": EngineUnavailable("x"),
                    "refused": EngineRefused("x"),
                    "cancelled": asyncio.CancelledError(),
                }[end]
                call.fail(error, received_bytes=data.draw(st.integers(0, 1_000)))
        left = ledger.allowance.remaining()
        assert all(rest is None or rest >= 0 for rest in (left.max_calls, left.max_tokens, left.max_cost_usd))
    for call in under_way:
        call.settle(call.bound)
    assert budget.max_calls is None or len(ledger.calls) <= budget.max_calls
    assert budget.max_tokens is None or ledger.usage.total_tokens <= budget.max_tokens
    assert budget.max_cost_usd is None or ledger.cost_usd <= budget.max_cost_usd
    assert ledger.usage == usages(ledger.calls)
    assert Fraction(ledger.cost_usd) == sum(
        (Fraction(CARD.cost_usd(c.usage)) for c in ledger.calls), Fraction(0)
    )


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        (Budget(max_calls=2), "more than the 2 model calls"),
        (
            Budget(max_tokens=2 * (6 + 32 + 10)),
            "the next call may use 48 tokens; 0 of the request's 96 are left",
        ),
        (
            Budget(max_cost_usd=2 * CARD.cost_usd(PROMPT.most_usage(10))),
            "raise r2.max_cost_usd or lower max_tokens",
        ),
    ],
)
def test_budget_reserved_by_two_running_calls_is_refused_to_a_third(budget: Budget, complaint: str) -> None:
    ledger = Ledger(budget)
    calls = [reserve(ledger), reserve(ledger)]
    with pytest.raises(BudgetExceeded, match=complaint):
        reserve(ledger)
    for call in calls:
        call.settle(Usage(prompt_tokens=3, completion_tokens=1))
    if budget.max_calls is None:
        reserve(ledger)


@given(st.text())
def test_reservation_is_never_below_the_estimate(text: str) -> None:
    parts = ({"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": text}})
    tools = {"tools": [{"description": text}]}
    prompt = Prompt((Message(role="user", content=parts, more={"name": text}),), forwarded=tools)
    most, likely = prompt.most_usage(5), prompt.likely_usage(1_000, 5)
    assert most.prompt_tokens >= likely.prompt_tokens > Prompt(user(text)).likely_usage(0, 5).prompt_tokens
    assert (most.completion_tokens, likely.completion_tokens) == (5, 5)


def test_reservation_counts_characters_per_token_and_an_image_once() -> None:
    words, image = (
        {"type": "text", "text": "words " * 5_000},
        {"type": "image_url", "image_url": {"url": "x" * 10**6}},
    )
    text = Prompt((Message(role="user", content=(words,)),)).most_usage(1)
    both = Prompt((Message(role="user", content=(words, image)),)).most_usage(1)
    assert text.prompt_tokens == 12_000 + 32
    assert both.prompt_tokens - text.prompt_tokens == 2_000
    assert Prompt(user("日" * 100)).most_usage(1).prompt_tokens == 150 + 32


def test_cached_and_reasoning_tokens_have_their_own_prices() -> None:
    card = model(
        "m",
        usd_per_mtok_cached_read=Decimal("0.1"),
        usd_per_mtok_cached_write=Decimal("1.25"),
        usd_per_mtok_reasoning=Decimal(3),
    )
    usage = Usage(
        prompt_tokens=1000,
        completion_tokens=100,
        cached_read_tokens=600,
        cached_write_tokens=200,
        reasoning_tokens=40,
    )
    assert card.cost_usd(usage) == Decimal(200 * 100 + 600 * 10 + 200 * 125 + 60 * 200 + 40 * 300) / 10**8
    assert CARD.cost_usd(usage) == CARD.cost_usd(Usage(prompt_tokens=1000, completion_tokens=100))
    assert (usage + usage).cached_read_tokens == 1200 and (usage + Usage()) == usage


def test_reply_without_a_limit_is_booked_in_full_however_little_was_reserved() -> None:
    ledger = Ledger(Budget())
    call = ledger.reserve(CARD, PROMPT, 10, stage="execute", is_limited=False)
    call.fail(EngineUnavailable("cut"), received_bytes=4_000)
    assert ledger.usage.completion_tokens == 1_000


def test_thousands_of_tenths_of_a_cent_sum_exactly() -> None:
    ledger = Ledger(Budget())
    card = model("m", usd_per_mtok_in=Decimal("0.1"), usd_per_mtok_out=Decimal("0.2"))
    for _ in range(3_000):
        ledger.reserve(card, PROMPT, 1, stage="execute").settle(Usage(prompt_tokens=1, completion_tokens=1))
    assert ledger.cost_usd == Decimal("0.0009")


def test_call_that_is_closed_twice_counts_once() -> None:
    ledger = Ledger(Budget())
    call = reserve(ledger)
    call.settle(Usage(prompt_tokens=5))
    call.fail(EngineUnavailable("too late"))
    assert [c.outcome for c in ledger.calls] == ["ok"]
    assert ledger.usage == Usage(prompt_tokens=5)


@pytest.mark.parametrize(
    ("error", "num_received", "outcome", "usage", "is_estimated"),
    [
        (EngineUnavailable("down"), 9, "failed", Usage(prompt_tokens=4, completion_tokens=3), True),
        (asyncio.CancelledError(), 9, "cancelled", Usage(prompt_tokens=4, completion_tokens=3), True),
        (EngineRefused("too long"), 0, "failed", Usage(), False),
        (EngineRefused("after all"), 9, "failed", Usage(prompt_tokens=4, completion_tokens=3), True),
        (AnswerWithheld("filtered"), 0, "failed", Usage(prompt_tokens=4), True),
    ],
)
def test_unfinished_call_costs_what_was_sent_and_received(
    error: BaseException, num_received: int, outcome: str, usage: Usage, is_estimated: bool
) -> None:
    ledger = Ledger(Budget())
    reserve(ledger).fail(error, received_bytes=num_received)
    (record,) = ledger.calls
    assert (record.outcome, record.usage, record.is_estimated) == (outcome, usage, is_estimated)
    assert record.error == type(error).__name__
    assert record.cost_usd == CARD.cost_usd(usage)


@pytest.mark.parametrize(
    "error", [InvalidReply("x"), EngineRefused("x"), AnswerWithheld("x"), EngineUnavailable("x")]
)
def test_failed_call_costs_its_reported_usage(error: EngineError) -> None:
    reported = error.usage = Usage(prompt_tokens=70, completion_tokens=20)
    ledger = Ledger(Budget())
    reserve(ledger).fail(error, received_bytes=9)
    reserve(ledger).fail(asyncio.CancelledError(), received_bytes=9, reported=reported)
    assert [(c.usage, c.cost_usd, c.is_estimated) for c in ledger.calls] == [
        (reported, CARD.cost_usd(reported), False)
    ] * 2


def test_json_schema_is_counted_in_the_prompt_if_the_provider_bills_it() -> None:
    schema = {"type": "object", "description": "word " * 1000}
    engine = HostedEngineConfig(kind="openai", model="m")
    sent, left_out = (
        Prompt.to(CARD.model_copy(update={"engine": engine, **card}), user("one two three"), schema)
        for card in ({}, {"capabilities": {"json_schema": False}})
    )
    num_bytes = len(json.dumps(schema).encode())
    most = math.ceil(num_bytes / 2.5)
    assert left_out.most_usage(10) == PROMPT.most_usage(10)
    assert sent.most_usage(10).prompt_tokens == PROMPT.most_usage(10).prompt_tokens + most
    assert sent.likely_usage(0, 10).prompt_tokens == PROMPT.likely_usage(0, 10).prompt_tokens + -(
        -num_bytes // 4
    )


def test_absorbed_calls_count_against_the_budget_and_keep_their_times() -> None:
    clock = iter(range(100))
    stage = Ledger(Budget(), clock=lambda: float(next(clock)))
    reserve(stage).settle(Usage(prompt_tokens=7, completion_tokens=2))
    ledger = Ledger(Budget(max_calls=1))
    ledger.absorb(stage.calls, shift_s=10.0)
    assert (ledger.usage, ledger.cost_usd) == (stage.usage, stage.cost_usd)
    assert [(c.start_s - 10, c.end_s - 10) for c in ledger.calls] == [
        (c.start_s, c.end_s) for c in stage.calls
    ]
    with pytest.raises(BudgetExceeded):
        reserve(ledger)


def test_costs_of_the_stages_add_up_to_the_total() -> None:
    ledger = Ledger(Budget())
    for stage in ("decompose", "allocate", "execute", "execute", "pass_through"):
        ledger.reserve(CARD, PROMPT, 10, stage=stage).settle(Usage(prompt_tokens=3, completion_tokens=2))
    by_stage = [
        total_cost_usd(ledger.calls, stage=s) for s in ("decompose", "allocate", "execute", "pass_through")
    ]
    assert sum(by_stage) == ledger.cost_usd == total_cost_usd(ledger.calls)
    assert by_stage[2] == 2 * by_stage[0]


def test_reserving_takes_no_longer_after_many_calls() -> None:
    """256 subtasks with retries make hundreds of reservations; none may walk through all earlier calls."""
    ledger = Ledger(Budget(max_calls=10_000, max_tokens=10**9, max_cost_usd=Decimal(1_000)))
    for _ in range(5_000):
        reserve(ledger).settle(Usage(prompt_tokens=3, completion_tokens=1))

    def reserve_and_settle() -> None:
        for _ in range(200):
            reserve(ledger).settle(Usage(prompt_tokens=3, completion_tokens=1))

    assert loops(reserve_and_settle) < 6
