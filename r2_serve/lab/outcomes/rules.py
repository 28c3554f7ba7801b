"""Fits the rules by which a gate stops.

What going on is worth is a linear function of the state, fitted from the last model back to the first (fitted
value iteration; Tsitsiklis and Van Roy, "Regression methods for pricing complex American-style options",
2001). `gates.fitted` applies the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
    rows: npt.NDArray[np.int64]


@dataclass
class FittingStates(States):
    """The states of fitting tasks, with the matrices by which rules are fitted, each computed once."""

    _solvers: dict[tuple[frozenset[int], int], Floats] = field(default_factory=dict)

    def solver(self, asked: Sequence[int], part: Part) -> Floats:
        """The matrix that turns values of going on into the coefficients of a rule, (features, tasks)."""
        key = frozenset(asked), part.number
        if key not in self._solvers:
            features = self.after(asked).features[part.rows]
            ridge = np.diag([*_RIDGES, *[_RIDGE] * (features.shape[1] - len(_RIDGES))])
            self._solvers[key] = np.linalg.solve(features.T @ features + ridge, features.T)
        return self._solvers[key]


def fit_rules(states: FittingStates, order: tuple[int, ...], value_per_usd: float, part: Part) -> Chain:
    """Fit the rules of an order from its last model back to its first."""
    price = value_per_usd * states.cost_usd
    value = states.after(order).belief.chance
    rules: list[Floats] = []
    for stage in range(len(order) - 1, 0, -1):
        state = states.after(order[:stage])
        going_on = value - price[:, order[stage]]
        rule = states.solver(order[:stage], part) @ going_on[part.rows]
        rules.append(rule)
        chance = state.belief.chance
        value = np.where(chance > state.features @ rule, chance, going_on)
    value = value - price[:, order[0]]
    return Chain(order, tuple(reversed(rules)), float(value[part.rows].mean()))
