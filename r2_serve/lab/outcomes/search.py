"""Finds the order of a gate by local search: one model enters, leaves, moves or replaces another.

The value of an order is that of `rules.Valuation`. The search begins with the order it is given, else with
the best of all single models and pairs, and takes the best move until none helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

from r2_serve.gates.fitted import Chain
from r2_serve.lab.outcomes.rules import MOST_STAGES, FittingStates, Part, Valuation

Order = tuple[int, ...]
_LEAST_GAIN = 1e-6


def best_chain(states: FittingStates, value_per_usd: float, part: Part, start: Order | None = None) -> Chain:
    """The best chain that the search finds at one price of a right answer."""
    models = range(states.cost_usd.shape[1])
    valuation = Valuation(states, part, value_per_usd)

    def best(orders: Sequence[Order]) -> Chain:
        return max(valuation.chains(orders), key=lambda chain: chain.value)

    first = [(model,) for model in models]
    chain = best([start] if start else [*first, *permutations(models, 2)])
    while moves := set(_moves(chain.order, models)):
        found = best(sorted(moves))
        if found.value <= chain.value + _LEAST_GAIN:
            break
        chain = found
    return chain


def _moves(order: Order, models: Sequence[int]) -> Iterator[Order]:
    for model in models:
        rest = tuple(other for other in order if other != model)
        if model in order:
            if rest:
                yield rest
        elif len(order) >= MOST_STAGES:
            rest = ()
        for place in range(len(rest) + 1 if rest else 0):
            yield (*rest[:place], model, *rest[place:])
        if model not in order:
            for place in range(len(order)):
                yield (*order[:place], model, *order[place + 1 :])
