"""Fits a gate to a part of a book.

Three things keep it from believing its own luck. The weights that judge a task are fitted without it
(cross-fitting). The price of a right answer, the one number that trades accuracy for cost, is chosen by
cross-validation: every fold is answered by a gate whose order and rules were found without it. And the gain
over the reference is paired: both answer the same tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from r2_serve.errors import BookError
from r2_serve.gates.belief import Evidence, Weights
from r2_serve.gates.fitted import Answers, Chain, Gate, run_chain
from r2_serve.gates.table import Floats, Ints, OutcomeTable
from r2_serve.lab.outcomes.posterior import fit_weights, scales_of
from r2_serve.lab.outcomes.rules import FittingStates, Part
from r2_serve.lab.outcomes.search import best_chain
from r2_serve.lab.outcomes.simple import SimpleCandidate, SimpleGates, counting_gate

NUM_FOLDS = 5
NUM_SIMPLE = 16
"""Prices at which the best simple gate is looked for."""
MOST_TASKS = 3_000
"""So many tasks are drawn of a larger book: more of them hardly change a fit, and take memory and minutes."""


@dataclass(frozen=True)
class Candidate:
    """The gate of one price of a right answer, and how its like did on tasks that it had not seen."""

    value_per_usd: float
    chain: Chain
    parts: tuple[Chain, ...]
    """The gates that were found without one fold each."""
    unseen: Answers
    """The answers to all fitting tasks, each by the gate that was found without the task's fold."""


@dataclass
class Fit:
    """The evidence weights of a table, and the candidates that were made of them, by price."""

    table: OutcomeTable
    states: FittingStates
    weights: Weights
    """Fitted on all tasks."""
    _found: dict[float, Candidate] = field(default_factory=dict)

    @property
    def prices(self) -> tuple[float, float]:
        """The right answers that one USD is worth: almost none of the cost counts, and almost all of it."""
        costs = self.table.mean_cost_usd[self.table.mean_cost_usd > 0]
        return (0.02 / costs.max(), 2.0 / costs.min()) if costs.size else (1.0, 1.0)

    def grid(self, number: int) -> list[Candidate]:
        """Candidates of so many prices, spread evenly over their orders of magnitude; the lowest first."""
        return [self.candidate(price) for price in np.geomspace(*self.prices, number)]

    def candidate(self, value_per_usd: float) -> Candidate:
        """The candidate of a price. Its search begins with the orders of the nearest price that is known."""
        price = float(value_per_usd)
        if price not in self._found:
            near = min(self._found.values(), key=lambda c: abs(np.log(c.value_per_usd / price)), default=None)
            self._found[price] = self._search(price, near)
        return self._found[price]

    def _search(self, price: float, near: Candidate | None) -> Candidate:
        fold = self.states.fold
        num_folds = int(fold.max()) + 1
        chain = best_chain(
            self.states, price, Part(num_folds, np.ones(len(fold))), near.chain.order if near else None
        )
        parts = tuple(
            best_chain(
                self.states, price, Part(k, 1.0 * (fold != k)), near.parts[k].order if near else chain.order
            )
            for k in range(num_folds)
        )
        unseen = _joined([run_chain(self.states, part) for part in parts], fold)
        return Candidate(price, chain, parts, unseen)

    @cached_property
    def simple(self) -> list[SimpleCandidate]:
        """The simple gates of prices from end to end."""
        gates = SimpleGates.of(self.table)
        return [gates.candidate(price, self.states.fold) for price in np.geomspace(*self.prices, NUM_SIMPLE)]

    def gate(self, candidate: Candidate | SimpleCandidate) -> Gate:
        """The gate of a candidate, with weights that are fitted on all tasks."""
        if isinstance(candidate, SimpleCandidate):
            return counting_gate(self.table, candidate.order)
        models = self.table.models
        return Gate(
            models=models,
            order=tuple(models[i] for i in candidate.chain.order),
            rules=tuple(tuple(map(float, rule)) for rule in candidate.chain.rules),
            weights=tuple(map(float, self.weights.vector)),
            scales=scales_of(self.table),
        )


def fit(table: OutcomeTable, seed: int = 0) -> Fit:
    """Fit the evidence weights, for each fold without its tasks, and for all tasks.

    Raises: BookError if there is one prompt alone.
    """
    if len(table) > MOST_TASKS:
        table = table.take(np.sort(np.random.default_rng(seed).permutation(len(table))[:MOST_TASKS]))
    evidence = Evidence.of(table, scales_of(table))
    rows = np.arange(len(table))
    num_folds = min(NUM_FOLDS, table.num_prompts)
    if num_folds < 2:
        raise BookError(f"all {len(table)} tasks have one prompt; a fit needs two prompts at least")
    fold = table.folds(num_folds, seed)
    whole = fit_weights(evidence, rows, seed)
    weights = [fit_weights(evidence, rows[fold != k], seed, whole) for k in range(num_folds)]
    return Fit(table, FittingStates(evidence, table.cost_usd, fold, weights), whole)


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
