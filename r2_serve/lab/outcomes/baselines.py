"""The ways of choosing a model that every report shows next to the fitted gate.

Each is fitted on one half of the book and answers the other. What a row may choose (a pair of models, a
threshold, a number of neighbours) is chosen on the fitting half: the cheapest setting that reaches the
reference's accuracy there, else the most accurate one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import permutations
from typing import TypeVar

import numpy as np

from r2_serve.gates.fitted import Answers
from r2_serve.gates.table import Floats, OutcomeTable
from r2_serve.lab.outcomes.simple import all_orders, until_two_agree

T = TypeVar("T")
Policy = Callable[[OutcomeTable], Answers]
NAIVE_MARGIN = 0.004
"""The agreement gate has to beat the reference by so much on the fitting half."""
MOST_KNOWN = 3_000
"""Prompts that are compared with; of a larger book so many are drawn, as each is compared with all."""
_NEIGHBOURS = (5, 20, 60)
_NUM_WEIGHTS = 12


def single(model: int) -> Policy:
    """One model answers every task."""

    def answer(table: OutcomeTable) -> Answers:
        ones = np.ones(len(table))
        return Answers(table.expected_right[:, model], table.expected_cost_usd[:, model], ones)

    return answer


def best_single(table: OutcomeTable) -> int:
    """The most accurate model; of equal ones the cheaper."""
    return int(np.lexsort((table.mean_cost_usd, -table.accuracy))[0])


def oracle(table: OutcomeTable) -> Answers:
    """The cheapest right model of each task, known beforehand; the cheapest model where none is right."""
    cost = np.where(table.is_asked, table.cost_usd, np.inf)
    is_right = table.right.any(axis=1)
    chosen = np.where(is_right, np.where(table.right, cost, np.inf).argmin(axis=1), cost.argmin(axis=1))
    paid = table.cost_usd[np.arange(len(table)), chosen]
    return Answers(is_right.astype(float), paid, np.ones(len(table)))


def random_mix(table: OutcomeTable, target: float) -> Policy:
    """Two models drawn at random with fixed shares: the cheapest mix of the target's accuracy."""
    accuracy, cost = table.accuracy, table.mean_cost_usd
    best, shares = np.inf, (best_single(table), best_single(table), 1.0)
    for i, j in permutations(range(len(table.models)), 2):
        if accuracy[i] < target:
            continue
        share = 1.0 if accuracy[j] >= target else (target - accuracy[j]) / (accuracy[i] - accuracy[j])
        if (mixed := share * cost[i] + (1 - share) * cost[j]) < best:
            best, shares = mixed, (i, j, share)
    one, other, share = shares

    def answer(other_table: OutcomeTable) -> Answers:
        first, second = single(one)(other_table), single(other)(other_table)
        return Answers(
            share * first.right + (1 - share) * second.right,
            share * first.cost_usd + (1 - share) * second.cost_usd,
            first.asked,
        )

    return answer


def neighbours(table: OutcomeTable, target: float) -> Policy:
    """Reads the prompt alone: the model that did best on the most similar prompts of the fitting half.

    Similarity is the cosine of TF-IDF vectors. A model's worth is its accuracy among the k neighbours, less
    its cost at a price. Both k and the price are chosen on the fitting half, without the task itself.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(table) > MOST_KNOWN:
        table = table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:MOST_KNOWN]))
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=min(2, len(table)))
    try:
        known = vectorizer.fit_transform(table.prompts)
    except ValueError:  # the prompts hold no word
        return single(best_single(table))
    similar = (known @ known.T).toarray()
    np.fill_diagonal(similar, -1.0)
    costs = table.mean_cost_usd
    prices = np.r_[0.0, np.geomspace(0.01, 3.0, _NUM_WEIGHTS) / max(costs.max(), 1e-12)]
    settings = []
    for k in _NEIGHBOURS:
        means = _means_of_nearest(similar, table.expected_right, k)
        for price in prices:
            settings.append(((k, price), _chosen(table, (means - price * costs).argmax(axis=1))))
    k, price = cheapest_reaching(settings, target)

    def answer(other: OutcomeTable) -> Answers:
        near = (vectorizer.transform(other.prompts) @ known.T).toarray()
        return _chosen(
            other, (_means_of_nearest(near, table.expected_right, k) - price * costs).argmax(axis=1)
        )

    return answer


def _means_of_nearest(similar: Floats, right: Floats, k: int) -> Floats:
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return np.asarray(right[nearest].mean(axis=1))


def _chosen(table: OutcomeTable, models: np.typing.NDArray[np.integer]) -> Answers:
    rows = np.arange(len(table))
    right, cost = table.expected_right[rows, models], table.expected_cost_usd[rows, models]
    return Answers(right, cost, np.ones(len(table)))


def confidence_cascade(table: OutcomeTable, target: float) -> Policy | None:
    """Two models: the second is asked where the first one's confidence is low; None without confidences."""
    if np.isnan(table.confidence).all():
        return None
    settings: list[tuple[tuple[int, int, float], Answers]] = []
    for one, other in permutations(range(len(table.models)), 2):
        known = table.confidence[:, one]
        if np.isnan(known).all():
            continue
        for threshold in np.unique(np.nanquantile(known, np.linspace(0, 1, 11))):
            setting = one, other, float(threshold)
            settings.append((setting, _escalated(table, *setting)))
    best = cheapest_reaching(settings, target)
    return lambda other: _escalated(other, *best)


def _escalated(table: OutcomeTable, one: int, other: int, threshold: float) -> Answers:
    is_low = ~(np.nan_to_num(table.confidence[:, one], nan=-1.0) >= threshold)
    right, cost = table.expected_right, table.expected_cost_usd
    return Answers(
        np.where(is_low, right[:, other], right[:, one]),
        cost[:, one] + is_low * cost[:, other],
        1.0 + is_low.astype(float),
    )


def agreement_gate(table: OutcomeTable, target: float) -> Policy:
    """Models are asked in turn until two agree; else the last one's answer counts.

    All cascades of up to four of the most useful models are tried, a dearer model always after a cheaper
    one; the cheapest that reaches the target plus `NAIVE_MARGIN` on the fitting half is taken.
    """
    settings = [(order, until_two_agree(table, order)) for order in all_orders(table)]
    best = cheapest_reaching(settings, target + NAIVE_MARGIN)
    return lambda other: until_two_agree(other, best)


def cheapest_reaching(settings: Iterable[tuple[T, Answers]], target: float) -> T:
    """The cheapest setting of the target's accuracy; without one, the most accurate."""
    found = list(settings)
    reached = [item for item in found if item[1].accuracy >= target]
    if reached:
        return min(reached, key=lambda item: item[1].mean_cost_usd)[0]
    return max(found, key=lambda item: (item[1].accuracy, -item[1].mean_cost_usd))[0]
