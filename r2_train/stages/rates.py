"""Labels of the allocator from solve rates, on many markets: what `search` finds by running plans, reckoned.

Where the skill of every model at every kind of step was measured, no plan needs to run. A step gets the
candidate with the least of

    price over the market's highest price - weight * log(solve rate)

The logarithms add up along a plan to that of the plan's success, so the weight is the price of certainty. It
is fitted: the smallest one whose expected accuracy, as the mean over markets drawn from the pool, is within
`MAX_LOSS` of the best. The pool as it is would not do: where a sure and cheap specialist does every step, any
weight is as good, and the smallest one fails once such a specialist has gone. Each plan is labelled on the
pool as it is, on markets drawn from it, and on pools of invented models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from r2_serve.prompts.compact import step_kind
from r2_serve.types import ModelCard, Plan, Record
from r2_train.rollouts.described_pool import DescribedPool
from r2_train.rollouts.markets import draw_market, invented_pool
from r2_train.stages.examples import Example, allocation_example
from r2_train.stages.search import PlannedTask

WEIGHTS = tuple(2.0**k for k in range(-2, 9))
MAX_LOSS = 0.002
NUM_FITTED_MARKETS = 60
MOST_CERTAIN = 0.9995
"""The highest solve rate that some hundred samples can show."""

Pool = Sequence[ModelCard]


class RateSummary(Record):
    """What the labels expect."""

    num_plans: int
    weight: float
    expected_accuracy: float
    expected_cost: float
    """Mean price of a step over that of the dearest model."""
    shares: dict[str, float]
    """Share of the steps that each model gets on the pool as it is."""


def labels(plan: Plan, pool: Pool, weight: float) -> tuple[str, ...]:
    """The model of each step."""
    kinds = [step_kind(subtask) for subtask in plan.subtasks]
    best = _best({*kinds}, pool, weight)
    return tuple(best[kind].name for kind in kinds)


def fit_weight(plans: Sequence[Plan], pool: Pool) -> float:
    """The smallest weight whose labels lose hardly any expected accuracy on the pool and its markets."""
    steps = [[step_kind(subtask) for subtask in plan.subtasks] for plan in plans]
    kinds, rng = {kind for plan in steps for kind in plan}, random.Random("fit-weight")
    pools = [pool, *(draw_market(pool, rng).cards(pool) for _ in range(NUM_FITTED_MARKETS))]

    def accuracy(weight: float, offered: Pool) -> float:
        rates = {kind: _rate(card, kind) for kind, card in _best(kinds, offered, weight).items()}
        return fmean(math.prod(rates[kind] for kind in plan) for plan in steps)

    means = {weight: fmean(accuracy(weight, offered) for offered in pools) for weight in WEIGHTS}
    return min(weight for weight in WEIGHTS if means[weight] >= max(means.values()) - MAX_LOSS)


def expected_accuracy(plan: Plan, pool: Pool, models: Sequence[str]) -> float:
    """The product of the solve rates of the plan's steps."""
    by_name = {card.name: card for card in pool}
    pairs = zip(plan.subtasks, models, strict=True)
    return math.prod(_rate(by_name[model], step_kind(subtask)) for subtask, model in pairs)


def summary(plans: Sequence[Plan], pool: Pool, weight: float) -> RateSummary:
    """The figures of the labels on the pool as it is."""
    chosen = [labels(plan, pool, weight) for plan in plans]
    used = [model for models in chosen for model in models]
    prices = {card.name: _price(card) for card in pool}
    return RateSummary(
        num_plans=len(plans),
        weight=weight,
        expected_accuracy=fmean(
            expected_accuracy(plan, pool, models) for plan, models in zip(plans, chosen, strict=True)
        ),
        expected_cost=fmean(prices[model] for model in used) / max(prices.values()),
        shares={name: used.count(name) / len(used) for name in prices},
    )


def markets(pool: Pool, num_markets: int, rng: random.Random) -> Iterator[list[ModelCard]]:
    """The pool as it is, then markets drawn from it and pools of invented models in turn."""
    yield list(pool)
    for i in range(num_markets):
        yield invented_pool(pool, rng) if i % 2 else draw_market(pool, rng).cards(pool)


def market_examples(
    pool: DescribedPool,
    train: Sequence[PlannedTask],
    validation: Sequence[PlannedTask],
    num_markets: int,
    seed: int,
) -> list[Example]:
    """Each plan of `train` on the pool as it is, on random markets, and with the models of invented pools."""
    weight, rng = fit_weight([item.plan for item in validation], pool.cards), random.Random(f"markets/{seed}")
    return [
        allocation_example(
            pool, item.task.id, item.task.query, item.plan, labels(item.plan, cards, weight), cards=cards
        )
        for item in train
        for cards in markets(pool.cards, num_markets, rng)
    ]


def _best(kinds: Iterable[str], pool: Pool, weight: float) -> dict[str, ModelCard]:
    """The label of each kind of step."""
    most = max(_price(card) for card in pool)

    def loss(card: ModelCard, kind: str) -> tuple[float, float]:
        return _price(card) / most - weight * math.log(_rate(card, kind)), _price(card)

    return {kind: min(pool, key=lambda card: loss(card, kind)) for kind in kinds}


def _price(card: ModelCard) -> float:
    return float(card.usd_per_mtok_in + card.usd_per_mtok_out)


def _rate(card: ModelCard, kind: str) -> float:
    return min(max(card.skills.get(kind, 0.0), 1e-3), MOST_CERTAIN)
