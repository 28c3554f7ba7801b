"""Random pools and prices, and the allocator's labels from solve rates."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from r2_serve.types import CallRecord, ModelCard, Usage
from r2_train.config import PoolConfig
from r2_train.rollouts.described_pool import described
from r2_train.rollouts.markets import draw_market, invented_pool
from r2_train.stages.rates import expected_accuracy, fit_weight, labels, markets
from tests.support.in_process import plan_of


def card(name: str, price: str, **skills: float) -> ModelCard:
    named = {{"plus": "+", "most": "max"}[kind]: rate for kind, rate in skills.items()}
    usd = Decimal(price)
    return ModelCard(name=name, codec="compact", usd_per_mtok_in=usd, usd_per_mtok_out=usd, skills=named)


POOL = [
    card("tiny", "0.01", plus=0.6),
    card("sums", "0.04", plus=0.999),
    card("all", "0.2", plus=0.999, most=0.99),
]
PLAN = plan_of("3 + 4", "max 1 , 2 , #1")


def test_labels_are_the_cheapest_models_that_are_sure_enough() -> None:
    weight = fit_weight([PLAN], POOL)
    assert labels(PLAN, POOL, weight) == ("sums", "all")
    assert expected_accuracy(PLAN, POOL, ("sums", "all")) == pytest.approx(0.999 * 0.99)
    assert labels(PLAN, POOL, 0.2) == ("tiny", "all")


def test_labels_stay_sure_on_a_pool_that_has_lost_its_cheap_specialist() -> None:
    """Without `sums`, a weight that was fitted on the whole pool alone would prefer `tiny`, right at 60 %."""
    weight = fit_weight([plan_of("3 + 4")], POOL)
    assert labels(PLAN, [POOL[0], POOL[2]], weight) == ("all", "all")


def test_labels_follow_a_changed_price_and_a_removed_model() -> None:
    weight = 4.0
    dear = card("sums", "0.4", plus=0.999)
    assert labels(PLAN, [POOL[0], dear, POOL[2]], weight)[0] == "all"
    assert labels(PLAN, [POOL[0], POOL[2]], weight)[0] == "all"


def test_markets_leave_models_out_and_change_prices_but_keep_the_last_model() -> None:
    drawn = [draw_market(POOL, random.Random(i)) for i in range(50)]
    assert all("all" in market.prices and len(market.prices) >= 2 for market in drawn)
    assert {len(market.prices) for market in drawn} == {2, 3}
    ratios = [float(market.prices["all"] / Decimal("0.2")) for market in drawn]
    assert 0.25 <= min(ratios) < 0.5
    assert 2 < max(ratios) <= 4


def test_a_market_prices_the_calls_of_workers_alone() -> None:
    market = draw_market(POOL, random.Random(0))
    calls = [
        CallRecord(stage=stage, model="all", usage=Usage(prompt_tokens=9, completion_tokens=1))
        for stage in ("execute", "allocate")
    ]
    assert market.cost_usd(calls) == pytest.approx(float(market.prices["all"]) * 10 / 1e6)


def test_a_call_that_waits_behind_thousands_of_others_is_given_the_time_of_its_plan() -> None:
    pool = described(PoolConfig(virtual_model="r2-scan", call_timeout_s=600))
    assert pool.routing.limits.deadline_s == 600
    assert {model.timeout_s for model in pool.config.models} == {600}


def test_the_allocator_is_trained_on_the_pool_as_it_is_and_on_real_and_invented_markets() -> None:
    pools = list(markets(POOL, 4, random.Random(0)))
    assert pools[0] == POOL
    assert [pool[0].name.startswith("invented") for pool in pools[1:]] == [False, True, False, True]
    assert all(set(c.skills) == {"+", "max"} for c in invented_pool(POOL, random.Random(1)))
