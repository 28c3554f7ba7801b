"""Markets: which models of a pool are offered, and at which prices.

An allocator that is trained on many markets learns to read prices and skills. It then goes on working when
the real price list changes, a model is removed, or a new one with a measured skill is added.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from decimal import Decimal

from r2_serve.types import CallRecord, ModelCard, Record

LEAST_MODELS = 2
LEFT_OUT_SHARE = 0.2
MAX_PRICE_CHANGE = 4.0
"""A price is multiplied or divided by up to this number, all powers between being equally likely."""


class Market(Record):
    """The models on offer and their prices, in USD per 1M tokens, prompt and reply alike."""

    prices: dict[str, Decimal]

    def cards(self, pool: Sequence[ModelCard]) -> list[ModelCard]:
        """The cards of the models on offer, at this market's prices, in the pool's order."""
        return [priced(card, self.prices[card.name]) for card in pool if card.name in self.prices]

    def cost_usd(self, calls: Iterable[CallRecord]) -> float:
        """What the workers' calls cost at these prices."""
        return sum(
            float(self.prices[call.model]) * call.usage.total_tokens / 1e6
            for call in calls
            if call.stage == "execute"
        )


def draw_market(pool: Sequence[ModelCard], rng: random.Random) -> Market:
    """Leaves out models at random, but never the last one, which can do most, and changes every price."""
    kept = [card for card in pool[:-1] if rng.random() >= LEFT_OUT_SHARE]
    if len(kept) + 1 < LEAST_MODELS:
        kept = list(pool[:-1])
    return Market(prices={card.name: _changed(card, rng) for card in (*kept, pool[-1])})


def invented_pool(pool: Sequence[ModelCard], rng: random.Random) -> list[ModelCard]:
    """A pool of models that do not exist: their prices and skills are drawn. It is never asked."""
    kinds = sorted({kind for card in pool for kind in card.skills})
    num_models = rng.randint(LEAST_MODELS, len(pool))
    return [
        priced(pool[-1], Decimal(f"{10 ** rng.uniform(-2.5, 0):.6f}")).model_copy(
            update={"name": f"invented-{i}", "skills": {kind: _skill(rng) for kind in kinds}}
        )
        for i in range(num_models)
    ]


def priced(card: ModelCard, price: Decimal) -> ModelCard:
    """The card with one price for prompt and reply."""
    return card.model_copy(update={"usd_per_mtok_in": price, "usd_per_mtok_out": price})


def _changed(card: ModelCard, rng: random.Random) -> Decimal:
    factor = MAX_PRICE_CHANGE ** rng.uniform(-1, 1)
    return Decimal(f"{float(card.usd_per_mtok_out) * factor:.6f}")


def _skill(rng: random.Random) -> float:
    """Half of the draws know nothing of a kind; the others fail by a share that is drawn by its logarithm."""
    return 0.0 if rng.random() < 0.4 else 1 - 10 ** rng.uniform(-3.5, 0)
