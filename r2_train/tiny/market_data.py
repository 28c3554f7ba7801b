"""What the everyday allocator is trained on before reinforcement learning: plans on random markets.

The pool is that of the embedded serve config, with its prices and measured skills.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from r2_serve import EMBEDDED_CONFIG
from r2_serve.lab.domains import everyday, everyday_steps
from r2_serve.prompts.candidates import MAX_PRICE_LEVEL, SKILL_LEVELS
from r2_serve.serve_config import load
from r2_serve.types import ModelCard
from r2_train.stages.rates import fit_weight, labels, markets
from r2_train.tiny.tiny_data import allocation_example
from r2_train.tiny.tiny_models import TextExample

VIRTUAL_MODEL = "r2-everyday"
MARKETS_PER_PLAN = 8
MAX_CANDIDATES = 9


def pool_of_config() -> list[ModelCard]:
    """The everyday workers with their prices and skills."""
    served = load(EMBEDDED_CONFIG)
    return [served.router.model(name) for name in served.routing.virtual_models[VIRTUAL_MODEL].pool]


def everyday_allocation_examples(
    num_tasks: int, seed: int, pool: Sequence[ModelCard] | None = None
) -> list[TextExample]:
    """Reference plans of training problems on the pool as it is, and on random markets."""
    cards, rng = pool or pool_of_config(), random.Random(f"market-data/{seed}")
    plans = [everyday.plan(problem) for problem in everyday.problems("train", num_tasks, seed)]
    weight = fit_weight(plans[:500], cards)
    return [
        allocation_example("", plan, labels(plan, offered, weight), offered)
        for plan in plans
        for offered in markets(cards, MARKETS_PER_PLAN, rng)
    ]


def market_words() -> set[str]:
    """Every word of the described dialect, whether or not an example has it."""
    prices = {f"${level}" for level in range(MAX_PRICE_LEVEL + 1)}
    skills = {f"q{level}" for level in range(len(SKILL_LEVELS) + 1)}
    choices = {f"@{place}" for place in range(1, MAX_CANDIDATES + 1)}
    return {*everyday_steps.KINDS, ";", *prices, *skills, *choices}
