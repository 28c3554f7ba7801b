"""Gates with next to nothing to fit: models are asked in turn until two agree, or one model answers alone.

On few tasks they do better than gates whose evidence is weighed, since all that is chosen is the order. They
are candidates beside those, found at the same prices of a right answer and judged on folds that they had not
seen. Their file is that of any gate, with weights that count equal answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from r2_serve.gates.belief import NUM_COUNTS
from r2_serve.gates.fitted import Answers, Gate, without_silence
from r2_serve.gates.table import Floats, Ints, OutcomeTable
from r2_serve.lab.outcomes.posterior import scales_of

MODELS_IN_CASCADE, MOST_STAGES = 8, 4
_LATER = 0.01
"""What a later answer weighs more than an earlier one, so that the last one counts if none agree."""
_ONE_MORE = 1e-6
"""What asking another model costs at least, so that free ones are not asked in vain."""
Order = tuple[int, ...]


@dataclass(frozen=True)
class SimpleCandidate:
    """The order of one price of a right answer, and how its like did on tasks that it had not seen."""

    order: Order
    unseen: Answers


@dataclass(frozen=True)
class SimpleGates:
    """All simple gates of a table with their answers, a row for each gate."""

    table: OutcomeTable
    orders: Sequence[Order]
    right: Floats
    """(gates, T)"""
    cost_usd: Floats
    """(gates, T)"""
    asked: Floats
    """(gates, T)"""

    @classmethod
    def of(cls, table: OutcomeTable) -> SimpleGates:
        """Every model alone, and all cascades of the most useful ones, a dearer model after a cheaper one."""
        orders = all_orders(table)
        answers = [until_two_agree(table, order) for order in orders]
        return cls(
            table,
            orders,
            np.stack([a.right for a in answers]),
            np.stack([a.cost_usd for a in answers]),
            np.stack([a.asked for a in answers]),
        )

    def candidate(self, value_per_usd: float, fold: Ints) -> SimpleCandidate:
        """The best gate at a price; each fold is answered by the one that is best on the other folds."""
        value = self.right - value_per_usd * self.cost_usd - _ONE_MORE * self.asked
        best = np.array([value[:, fold != k].mean(axis=1).argmax() for k in range(int(fold.max()) + 1)])
        tasks, chosen = np.arange(len(fold)), best[fold]
        unseen = Answers(self.right[chosen, tasks], self.cost_usd[chosen, tasks], self.asked[chosen, tasks])
        return SimpleCandidate(self.orders[int(value.mean(axis=1).argmax())], unseen)

    def gate(self, order: Order) -> Gate:
        """The gate that asks in this order until two agree."""
        return counting_gate(self.table, order)


def all_orders(table: OutcomeTable) -> list[Order]:
    """The orders of all simple gates."""
    useful = _useful(table)
    sizes = range(2, MOST_STAGES + 1)
    cascades = [order for size in sizes for order in combinations(useful, size)]
    return [*cascades, *((model,) for model in range(len(table.models)))]


def _useful(table: OutcomeTable) -> list[int]:
    """The models that no cheaper one beats, filled up with the most accurate others; cheap ones first."""
    by_cost = list(np.argsort(table.mean_cost_usd, kind="stable"))
    accuracy = table.accuracy
    front = [m for i, m in enumerate(by_cost) if all(accuracy[m] > accuracy[o] for o in by_cost[:i])]
    others = sorted(set(by_cost) - set(front), key=lambda m: -accuracy[m])
    kept = {*front[-MODELS_IN_CASCADE:], *others[: max(0, MODELS_IN_CASCADE - len(front))]}
    return [int(m) for m in by_cost if m in kept]


def until_two_agree(table: OutcomeTable, order: Order) -> Answers:
    """Ask in this order until two answers are equal; the last answer counts if none are."""
    size = len(table)
    is_open, right = np.ones(size, bool), np.zeros(size)
    cost, asked = np.zeros(size), np.zeros(size)
    for stage, model in enumerate(order):
        cost += np.where(is_open, table.cost_usd[:, model], 0.0)
        asked += is_open
        groups = table.groups[:, model]
        right = np.where(is_open & (groups >= 0), table.right[:, model], right)
        agrees = np.zeros(size, bool)
        for earlier in order[:stage]:
            agrees |= (groups >= 0) & (groups == table.groups[:, earlier])
        is_open &= ~agrees
    return without_silence(
        Answers(right, cost, asked), np.asarray(table.is_asked[:, list(order)].any(axis=1))
    )


def counting_gate(table: OutcomeTable, order: Order) -> Gate:
    """`until_two_agree` as a gate. The chance that it tells is the share of its answers that were right."""
    size, num_replies, num_asks = len(table.models), table.replies.shape[2], table.asks.shape[1]
    num_votes, num_none = table.answers.shape[2] + num_replies, 2 * size + 2 + num_asks + num_replies
    by_model, by_count = np.zeros(size), np.zeros(NUM_COUNTS - 1)
    agreed, alone = _log_odds_right(table, order)
    by_model[list(order)] = _LATER * np.arange(len(order))
    by_model[order[-1]] = max(alone, _LATER * len(order))
    by_count[:] = max(agreed, by_model.max() + 2 * _LATER)
    more = 1.5, 1.0, 0.0, -1.0  # going on is worth more than the chance, unless two answers are equal
    rule = (*more, *[0.0] * (1 + num_replies + num_asks))
    return Gate(
        models=table.models,
        order=tuple(table.models[model] for model in order),
        rules=(rule,) * (len(order) - 1),
        weights=(*map(float, by_model), *map(float, by_count), *[0.0] * (num_votes + num_none)),
        scales=scales_of(table),
    )


def _log_odds_right(table: OutcomeTable, order: Order) -> tuple[float, float]:
    """How often answers were right, as log-odds: those that two models gave, and the last one's alone."""
    groups = table.groups[:, list(order)]
    equal = (groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]
    is_agreed = equal.sum(axis=2).max(axis=1) > 1
    right = until_two_agree(table, order).right
    pairs = ((float(right[rows].sum()), int(rows.sum())) for rows in (is_agreed, ~is_agreed))
    agreed, alone = (math.log((won + 1) / (number - won + 1)) for won, number in pairs)
    return agreed + math.log(len(order)), alone + math.log(len(order))
