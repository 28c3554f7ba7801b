"""Fits the weights by which `gates.belief` says how probable it is that the leading answer is right.

It is fitted on random sets of models, so it judges any set. A ridge penalty keeps weights small where the
fitting tasks say little. It is Dawid and Skene's setting with known answers (Applied Statistics 28, 1979),
without their assumption that models err independently: the weights of counts take what models share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from r2_serve.gates.belief import NUM_COUNTS, Evidence, Scales, Weights
from r2_serve.gates.table import MISSING, Bools, Floats, Ints, OutcomeTable

RIDGE = 1.0
"""Penalty on squared weights, in units of one task."""
SETS_PER_TASK, MOST_ASKED = 30, 5
"""Random sets of models for each fitting task, and the size of the largest."""
_NEWTON_STEPS, _SMALL_STEP, _LARGEST_STEP = 12, 0.01, 3.0
_MOST_LOG_ODDS = 100.0
"""Beyond this, the exponential says nothing more and might overflow."""
MOST_STATES = 60_000
"""A large book has fewer sets for each task: more states than this hardly change the weights."""


def scales_of(table: OutcomeTable) -> Scales:
    """The scales of a table's features."""
    replies = np.where(table.is_asked[:, :, None], table.replies, np.nan)
    answers = table.answers[table.groups >= 0]
    return Scales(
        replies=tuple(_pairs(replies[:, m]) for m in range(len(table.models))),
        answers=_pairs(answers),
        asks=_pairs(table.asks),
    )


def _pairs(values: Floats) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of each column; (0, 0) for a column without values."""
    pairs = []
    for column in values.T:
        known = column[~np.isnan(column)]
        pairs.append((float(known.mean()), float(known.std())) if known.size else (0.0, 0.0))
    return tuple(pairs)


def fit_weights(evidence: Evidence, rows: Ints, seed: int, start: Weights | None = None) -> Weights:
    """Fit the weights on the tasks `rows` by Newton's method, from `start` if it is given."""
    num_sets = max(1, min(SETS_PER_TASK, MOST_STATES // len(rows)))
    tasks, asked = _random_sets(len(rows), num_sets, evidence.num_models, np.random.default_rng(seed))
    tasks = rows[tasks]
    asked &= evidence.groups[tasks] != MISSING
    logit = _Logit.of(evidence, tasks, asked)
    weights = np.zeros(logit.answers.shape[1] + logit.none.shape[1]) if start is None else start.vector.copy()
    penalty = RIDGE * num_sets
    for _ in range(_NEWTON_STEPS):
        slope, curve = logit.derivatives(weights)
        step = np.linalg.solve(curve + penalty * np.eye(len(weights)), slope - penalty * weights)
        weights += step * min(1.0, _LARGEST_STEP / np.abs(step).max())
        if np.abs(step).max() < _SMALL_STEP:
            break
    return Weights(weights, evidence.num_models, evidence.votes.shape[2], evidence.asks.shape[1])


def _random_sets(
    num_tasks: int, num_sets: int, num_models: int, rng: np.random.Generator
) -> tuple[Ints, Bools]:
    """The task of each state, and which models are asked in it."""
    tasks = np.repeat(np.arange(num_tasks), num_sets)
    sizes = rng.integers(1, min(MOST_ASKED, num_models) + 1, size=len(tasks))
    ranks = rng.random((len(tasks), num_models)).argsort(axis=1)
    return tasks, ranks < sizes[:, None]


@dataclass(frozen=True)
class _Logit:
    """The alternatives of each state: its different answers, and "none", which shares no weight with them."""

    answers: Floats
    """The features of each answer, (R, features)."""
    none: Floats
    """The features of "none" in each state, (S, features)."""
    state: Ints
    """The state of each answer, in order, (R,)."""
    right: Floats
    """1 for the right answer of the state; if several differ and are right, they share it, (R,)."""

    @classmethod
    def of(cls, evidence: Evidence, tasks: Ints, asked: Bools) -> _Logit:
        """The alternatives of states: their tasks, and the models that are asked in them, (S, M)."""
        num_models = asked.shape[1]
        votes = evidence.same[tasks] & asked[:, None, :]
        is_earlier = np.arange(num_models)[None, :] < np.arange(num_models)[:, None]
        is_head = asked & (evidence.groups[tasks] >= 0) & ~(votes & is_earlier).any(axis=2)
        state, head = np.nonzero(is_head)
        voters = votes[state, head]
        count = voters.sum(axis=1)
        counts = np.eye(NUM_COUNTS)[np.minimum(count, NUM_COUNTS) - 1][:, 1:]
        features = np.einsum("rm,rmf->rf", voters, evidence.votes[tasks[state]]) / count[:, None]
        is_right = evidence.right[tasks[state], head]
        num_right = np.bincount(state, is_right, minlength=len(tasks))
        return cls(
            np.hstack([voters, counts, features]),
            _none_features(evidence, tasks, asked, is_head.sum(axis=1)),
            state,
            is_right / np.maximum(num_right[state], 1.0),
        )

    @cached_property
    def _by_state(self) -> csr_array:
        """The matrix that adds up the answers of each state, (S, R)."""
        ones, ends = np.ones(len(self.state)), np.searchsorted(self.state, np.arange(len(self.none) + 1))
        return csr_array((ones, np.arange(len(self.state)), ends), shape=(len(self.none), len(self.state)))

    def derivatives(self, weights: Floats) -> tuple[Floats, Floats]:
        """The slope of the log-likelihood and its negative curvature, (features,) and (features, features).

        The two kinds of alternatives share no weight, so the curvature is made of blocks.
        """
        size, sums = self.answers.shape[1], self._by_state
        utility, none = self.answers @ weights[:size], self.none @ weights[size:]
        powers = np.exp(np.minimum(utility - none[self.state], _MOST_LOG_ODDS))
        chance_none = 1 / (1 + sums @ powers)
        chances = powers * chance_none[self.state]
        has_right = sums @ self.right
        slope = np.r_[self.answers.T @ (self.right - chances), self.none.T @ (1 - has_right - chance_none)]
        weighted = self.answers * chances[:, None]
        means, curve = sums @ weighted, np.empty((len(weights), len(weights)))
        curve[:size, :size] = weighted.T @ self.answers - means.T @ means
        curve[size:, size:] = (self.none * (chance_none * (1 - chance_none))[:, None]).T @ self.none
        curve[:size, size:] = -(means * chance_none[:, None]).T @ self.none
        curve[size:, :size] = curve[:size, size:].T
        return slope, curve


def _none_features(evidence: Evidence, tasks: Ints, asked: Bools, num_answers: Ints) -> Floats:
    has_answer = evidence.groups[tasks] >= 0
    total = np.maximum(asked.sum(axis=1), 1)[:, None]
    mean = np.einsum("sm,smf->sf", asked, evidence.replies[tasks]) / total
    ones, answers = np.ones((len(tasks), 1)), np.log1p(num_answers)[:, None]
    return np.hstack([asked & has_answer, asked & ~has_answer, ones, answers, evidence.asks[tasks], mean])
