"""Estimates from books that hold only the reply of the model that was asked."""

from __future__ import annotations

import random

import pytest

from r2_serve.errors import BookError
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.lab.outcomes.offpolicy import estimates, holds_choices
from r2_serve.lab.outcomes.table import table_of


def served(num_tasks: int, share: float, seed: int = 1) -> list[Outcome]:
    """Hard prompts go to `strong` with probability 0.8, others with `share`; `strong` is right in 9 of 10
    easy tasks and in 6 of 10 hard ones, `weak` in 7 and 2."""
    rng, found = random.Random(seed), []
    for number in range(num_tasks):
        is_hard = rng.random() < 0.5
        chance = 0.8 if is_hard else share
        model = "strong" if rng.random() < chance else "weak"
        skill = {("strong", False): 0.9, ("strong", True): 0.6, ("weak", False): 0.7, ("weak", True): 0.2}
        found.append(
            Outcome(
                task=f"t{number}",
                model=model,
                prompt="hard " * 40 if is_hard else "easy",
                reply="answer",
                right=rng.random() < skill[model, is_hard],
                propensity=chance if model == "strong" else 1 - chance,
            )
        )
    return found


def test_estimates_are_near_the_truth_that_the_plain_mean_misses() -> None:
    table = table_of(served(4000, 0.2))
    plain = {m: table.right[:, i].sum() / table.is_asked[:, i].sum() for i, m in enumerate(table.models)}
    assert plain["strong"] < 0.70  # hard tasks went to it; its accuracy over all tasks is 0.75
    found = {estimate.model: estimate for estimate in estimates(table)}
    for model, truth in (("strong", 0.75), ("weak", 0.45)):
        for estimate in (found[model].accuracy_ips, found[model].accuracy_dr):
            assert estimate is not None
            half = (estimate.ci95[1] - estimate.ci95[0]) / 2
            assert half < 0.03
            assert abs(estimate.value - truth) < 1.5 * half


def test_small_effective_sample_is_refused() -> None:
    table = table_of(served(60, 0.01))
    weakest = min(estimates(table), key=lambda estimate: estimate.effective_sample)
    assert weakest.refused is not None
    assert "effective sample" in weakest.refused
    assert weakest.accuracy_dr is None


def test_book_without_propensities_is_refused() -> None:
    table = table_of([record.model_copy(update={"propensity": None}) for record in served(50, 0.5)])
    assert not holds_choices(table)
    with pytest.raises(BookError, match="propensity"):
        estimates(table)
