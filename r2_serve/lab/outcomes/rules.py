"""Fits the rules by which a gate stops.

What going on is worth is a linear function of the state, fitted from the last model back to the first (fitted
value iteration; Tsitsiklis and Van Roy, "Regression methods for pricing complex American-style options",
2001). `gates.fitted` applies the rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from r2_serve.gates.fitted import Chain, States
from r2_serve.gates.table import Floats

_RIDGES = (1e-6, 1e-3, 1e-3)
"""Penalties on the constant, the probability and its log-odds; the features of the state have `_RIDGE`."""
_RIDGE = 10.0
MOST_STAGES = 6
"""A gate asks at most so many models: later ones see few tasks, and their rules are fitted on few."""


@dataclass(frozen=True)
class Part:
    """The tasks on which rules are fitted; `number` tells parts of one table apart."""

    number: int
    mask: Floats
    """1 for each task of the part, else 0, (T,)."""


@dataclass
class FittingStates(States):
    """The states of fitting tasks, with what fits rules there, each computed once."""

    _inverses: dict[tuple[frozenset[int], int], Floats] = field(default_factory=dict)

    def inverse(self, asked: frozenset[int], part: Part) -> Floats:
        """The inverse of the penalised Gram matrix of a part's features, (features, features)."""
        key = asked, part.number
        if key not in self._inverses:
            features = self.after(asked).features
            ridge = np.diag([*_RIDGES, *[_RIDGE] * (features.shape[1] - len(_RIDGES))])
            self._inverses[key] = np.linalg.inv((features.T * part.mask) @ features + ridge)
        return self._inverses[key]


Going = tuple[frozenset[int], tuple[int, ...]]
"""The models asked so far, and those that follow: what the value of going on depends on."""


@dataclass
class Valuation:
    """Values orders of models on one part, at one price of a right answer.

    Orders that share their later stages share the work: the value of going on after a set of models depends
    on the set and on what follows, not on the order in which the set was asked. Orders whose sets are equal
    are computed as one product of matrices.
    """

    states: FittingStates
    part: Part
    value_per_usd: float
    _values: dict[Going, Floats] = field(default_factory=dict)
    _rules: dict[Going, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._price = np.ascontiguousarray(self.value_per_usd * self.states.cost_usd.T)
        self._share = self.part.mask / self.part.mask.sum()

    def chains(self, orders: Sequence[tuple[int, ...]]) -> list[Chain]:
        """The chain of each order."""
        for stage in range(max(map(len, orders)) - 1, 0, -1):
            self._fit_stage(stage, [order for order in orders if len(order) > stage])
        return [self._chain(order) for order in orders]

    def _fit_stage(self, stage: int, orders: Sequence[tuple[int, ...]]) -> None:
        """Fit the rules after `stage` models, where they are not known."""
        missing: dict[frozenset[int], dict[tuple[int, ...], None]] = defaultdict(dict)
        for order in orders:
            going = frozenset(order[:stage]), order[stage:]
            if going not in self._rules:
                missing[going[0]][going[1]] = None
        for asked, rests in missing.items():
            state = self.states.after(asked)
            chance, features = state.belief.chance, state.features
            going_on = np.array([self._value(asked, rest) for rest in rests])
            rules = ((going_on * self.part.mask) @ features) @ self.states.inverse(asked, self.part)
            values = np.where(chance > rules @ features.T, chance, going_on)
            for rest, rule, value in zip(rests, rules, values, strict=True):
                self._rules[asked, rest], self._values[asked, rest] = rule, value

    def _value(self, asked: frozenset[int], rest: tuple[int, ...]) -> Floats:
        """The value of asking the first model of `rest`, and of going on from there as fitted."""
        after = asked | {rest[0]}
        last = len(rest) == 1
        value = self.states.after(after).belief.chance if last else self._values[after, rest[1:]]
        return np.asarray(value - self._price[rest[0]])

    def _chain(self, order: tuple[int, ...]) -> Chain:
        rules = tuple(self._rules[frozenset(order[:k]), order[k:]] for k in range(1, len(order)))
        return Chain(order, rules, float(self._value(frozenset(), order) @ self._share))
