"""Fits a gate to a part of a book.

Three things keep it from believing its own luck. The weights that judge a task are fitted without it
(cross-fitting). The price of a right answer, the one number that trades accuracy for cost, is chosen by
cross-validation: every fold is answered by a gate whose order and rules were found without it. And the gain
over the reference is paired: both answer the same tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2_serve.lab.outcomes.gate import Answers, Chain, Gate, Part, States, run_chain
from r2_serve.lab.outcomes.posterior import Evidence, Weights, fit_weights, scales_of
from r2_serve.lab.outcomes.search import best_chain
from r2_serve.lab.outcomes.table import Floats, Ints, OutcomeTable

NUM_FOLDS = 5
NUM_PRICES = 14
"""Prices of a right answer that are tried."""


@dataclass(frozen=True)
class Candidate:
    """The gate of one price of a right answer, and how its like did on tasks that it had not seen."""

    value_per_usd: float
    chain: Chain
    unseen: Answers
    """The answers to all fitting tasks, each by the gate that was found without the task's fold."""


@dataclass(frozen=True)
class Fit:
    """The candidates of one fit, the cheapest price first, and what makes a gate of one of them."""

    table: OutcomeTable
    states: States
    evidence_weights: Weights
    candidates: tuple[Candidate, ...]

    def gate(self, candidate: Candidate) -> Gate:
        """The gate of a candidate, with weights that are fitted on all tasks."""
        models = self.table.models
        return Gate(
            models=models,
            order=tuple(models[i] for i in candidate.chain.order),
            rules=tuple(tuple(map(float, rule)) for rule in candidate.chain.rules),
            weights=tuple(map(float, self.evidence_weights.vector)),
            scales=scales_of(self.table),
        )


def fit(table: OutcomeTable, seed: int = 0) -> Fit:
    """Fit the evidence weights, and a gate for each price of a right answer."""
    evidence = Evidence.of(table, scales_of(table))
    rows = np.arange(len(table))
    num_folds = min(NUM_FOLDS, len(table))
    fold = np.random.default_rng(seed).permutation(rows) % num_folds
    weights = [fit_weights(evidence, rows[fold != k], seed) for k in range(num_folds)]
    states = States(evidence, table.cost_usd, fold, weights)
    candidates = _candidates(states, fold, _prices(table))
    return Fit(table, states, fit_weights(evidence, rows, seed), tuple(candidates))


def _prices(table: OutcomeTable) -> Floats:
    """Right answers that one USD is worth: from "cost hardly matters" to "accuracy hardly matters"."""
    costs = table.mean_cost_usd[table.mean_cost_usd > 0]
    if not costs.size:
        return np.array([1.0])
    return np.geomspace(0.02 / costs.max(), 2.0 / costs.min(), NUM_PRICES)


def _candidates(states: States, fold: Ints, prices: Floats) -> list[Candidate]:
    """One candidate for each price; neighbours begin their search from each other."""
    rows = np.arange(len(fold))
    parts = [Part(k, rows[fold != k]) for k in range(fold.max() + 1)]
    whole = Part(len(parts), rows)
    starts: list[tuple[int, ...] | None] = [None] * (len(parts) + 1)
    found = []
    for price in prices:
        chain = best_chain(states, price, whole, starts[-1])
        starts[-1] = chain.order
        unseen = []
        for k, part in enumerate(parts):
            other = best_chain(states, price, part, starts[k] or chain.order)
            starts[k] = other.order
            unseen.append(run_chain(states, other))
        found.append(Candidate(float(price), chain, _joined(unseen, fold)))
    return found


def _joined(answers: Sequence[Answers], fold: Ints) -> Answers:
    """The answers to each task by the gate of its fold."""

    def pick(values: Sequence[Floats]) -> Floats:
        return np.asarray(np.stack(values)[fold, np.arange(len(fold))])

    return Answers(
        pick([a.right for a in answers]),
        pick([a.cost_usd for a in answers]),
        pick([a.asked for a in answers]),
        pick([a.chance for a in answers if a.chance is not None]),
    )
