"""The measured skill of a worker: the share of held-out steps of each kind that it solves greedily."""

from __future__ import annotations

import random

from r2_serve.lab.domains import everyday_steps
from r2_train.tiny.tiny_data import everyday_step_example
from r2_train.tiny.tiny_models import TinyModel

NUM_STEPS = 400
"""Steps of each kind. A rate near 1 then has a standard error below half a percent."""


def held_out_steps(kind: str, num_steps: int, seed: int = 0) -> list[str]:
    """Distinct steps that no worker was trained on; any steps of a kind that is a small table."""
    rng = random.Random(f"everyday-skill/{seed}/{kind}")
    found: dict[str, None] = {}
    while len(found) < num_steps:
        text = everyday_steps.draw(kind, rng)
        if everyday_steps.is_held_out(text) or kind in everyday_steps.TABLES:
            found[text] = None
    return list(found)


def everyday_skills(worker: TinyModel, seed: int = 0, num_steps: int = NUM_STEPS) -> dict[str, float]:
    """The worker's solve rate by kind of step."""
    rates = {}
    for kind in everyday_steps.KINDS:
        solved = worker.solves([everyday_step_example(t) for t in held_out_steps(kind, num_steps, seed)])
        rates[kind] = sum(solved) / len(solved)
    return rates
