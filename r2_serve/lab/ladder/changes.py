"""The same router on changed pools, without training: other prices, a model less or more, 2 to 9 models; and
its figures by the number of steps of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from r2_serve.lab.domains import everyday
from r2_serve.lab.ladder.policies import constant, price
from r2_serve.lab.ladder.study import DEVELOPMENT_SEED, Bench, Row, Seed, means, measured, routed
from r2_serve.lab.ladder.tuning import skills, step_table
from r2_serve.types import ModelCard

DEARER = 10
NUM_SKILL_PROBLEMS = 400
GUEST = "words-22k"
"""A worker of another domain, which reads the same notation. No everyday allocator has met it."""
GROWTH = (
    "arithmetic-33k", "text-33k", "calendar-33k", "lists-33k", "general-72k", "calendar-6k", "units-6k",
    "general-33k",
)  # fmt: skip
"""The order in which models join the strongest one."""


@dataclass(frozen=True)
class Changed:
    """The router on a changed pool, beside the pool's strongest model on every step of the same plans."""

    pool: str
    router: Row
    strongest: Row

    @property
    def saving(self) -> float:
        return 1 - self.router.cost_usd / self.strongest.cost_usd

    def figures(self) -> dict[str, object]:
        return {"pool": self.pool, "r2": self.router.figures(), "strongest": self.strongest.figures()}


def pools(cards: Sequence[ModelCard]) -> dict[str, list[ModelCard]]:
    """Pools with changed prices or without a model, by the name of their row."""
    found = {"as it is": list(cards)}
    for card in cards:
        if card.name.endswith("-33k") or card.name == "general-72k":
            found[f"{card.name} {DEARER} times as dear"] = [_dearer(c) if c is card else c for c in cards]
            found[f"without {card.name}"] = [c for c in cards if c is not card]
    return found


def growing(cards: Sequence[ModelCard]) -> dict[str, list[ModelCard]]:
    """Pools of 2 models, 3 models, ... Names of `GROWTH` that `cards` lacks are passed over."""
    joining = [name for name in GROWTH if any(card.name == name for card in cards)]
    return {
        f"{size} models": [card for card in cards if card.name in {*joining[: size - 1], cards[-1].name}]
        for size in range(2, len(joining) + 2)
    }


async def with_guest(bench: Bench, guest: ModelCard) -> list[ModelCard]:
    """The pool and one more worker, whose skills are measured on development steps."""
    tasks = everyday.tasks("train", NUM_SKILL_PROBLEMS, DEVELOPMENT_SEED)
    table = await step_table(tasks, {guest.name: price(guest)}, bench.replies)
    added = guest.model_copy(update={"skills": skills(table)[guest.name]})
    return sorted([*bench.cards, added], key=price)


async def changed(bench: Bench, seeds: Sequence[Seed], found: dict[str, list[ModelCard]]) -> list[Changed]:
    """The router on every pool, as means over seeds."""
    rows = []
    for name, cards in found.items():
        at = {card.name: price(card) for card in cards}
        largest = cards[-1].name
        of_seeds = [
            [
                await routed(bench, seed, cards, name),
                await measured(bench, seed, f"all:{largest}", constant(largest), prices=at),
            ]
            for seed in seeds
        ]
        rows.append(Changed(name, *means(of_seeds)))
    return rows


def by_steps(bench: Bench, router: Row, strongest: Row) -> list[Changed]:
    """The figures of the problems with 2 steps, 3 steps, ..."""
    sizes = np.array([len(task.reference_plan.subtasks) for task in bench.tasks])
    return [
        Changed(f"{size} steps", router.only(sizes == size), strongest.only(sizes == size))
        for size in sorted(set(sizes.tolist()))
    ]


def _dearer(card: ModelCard) -> ModelCard:
    usd = card.usd_per_mtok_out * Decimal(DEARER)
    return card.model_copy(update={"usd_per_mtok_in": usd, "usd_per_mtok_out": usd})
