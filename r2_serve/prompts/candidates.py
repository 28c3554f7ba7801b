"""How the compact dialect describes a pool whose skills were measured: by price and skill, never by place.

A step's candidates are the models that no other model beats in both price and skill, cheapest first. Each is
written as its price below that of the pool's dearest model, and its skill:

    max $9 q3 $5 q8      two candidates; the second costs 2^(-5/2) of the dearest and is nearly always right

So the allocator's reply `@2` means the second candidate of that step, whichever model it is. A changed price,
a removed model or a new one changes the candidates, and the same allocator goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from r2_serve.types import ModelCard

SKILL_LEVELS = (0.5, 0.7, 0.85, 0.92, 0.96, 0.98, 0.99, 0.9975)
"""A skill's level is the number of these that it reaches."""
MAX_PRICE_LEVEL = 20
"""The level of a price that is 2^-10 of the dearest model's, or lower."""


def are_described(pool: Sequence[ModelCard]) -> bool:
    """Whether a skill of some model was measured."""
    return any(card.skills for card in pool)


def candidates(kind: str, pool: Sequence[ModelCard]) -> list[ModelCard]:
    """The models worth choosing for a step of this kind: each is better than all that are cheaper.

    If no model has the skill, nothing is known, and the pool's last model is the only candidate.
    """
    found: list[ModelCard] = []
    for card in sorted(pool, key=lambda card: (_price(card), -skill_level(card, kind))):
        if skill_level(card, kind) > max((skill_level(other, kind) for other in found), default=0):
            found.append(card)
    return found or [pool[-1]]


def described(kind: str, pool: Sequence[ModelCard]) -> str:
    """The kind, and the price level and skill level of each candidate."""
    dearest = max(map(_price, pool))
    levels = (
        f"${price_level(_price(card), dearest)} q{skill_level(card, kind)}" for card in candidates(kind, pool)
    )
    return " ".join((kind, *levels))


def place_of(model: str, options: Sequence[ModelCard], pool: Sequence[ModelCard]) -> int:
    """The place, from 1, of a model among the candidates of a step; or of the cheapest that is as able."""
    names = [card.name for card in options]
    if model in names:
        return names.index(model) + 1
    price = _price(next(card for card in pool if card.name == model))
    cheaper = [i for i, card in enumerate(options, 1) if _price(card) <= price]
    return cheaper[-1] if cheaper else 1


def skill_level(card: ModelCard, kind: str) -> int:
    """How able the model is at this kind of step, from 0 (not, or not measured) to 8."""
    return sum(card.skills.get(kind, 0.0) >= level for level in SKILL_LEVELS)


def price_level(price: float, dearest: float) -> int:
    """Twice the binary logarithm of the dearest price over this one, rounded; 0 is the dearest."""
    if price >= dearest:
        return 0
    return min(MAX_PRICE_LEVEL, round(2 * math.log2(dearest / price))) if price else MAX_PRICE_LEVEL


def _price(card: ModelCard) -> float:
    """Prompt and reply weigh alike, as embedded models read about as much as they write."""
    return float(card.usd_per_mtok_in + card.usd_per_mtok_out)
