"""How probable it is that the leading answer is right, given which models were asked and what they answered.

The model is a conditional logit over the different answers of one task and "none of them is right":

- An answer's utility is the sum of a weight for each model that gives it, a weight for the number of those
  models, and weights for the features of the answer and of its replies (means over the models that give it).
- The utility of "none" is the sum of a weight for each model asked, with and without an answer, the logarithm
  of the number of different answers, and weights for the features of the prompt and of all replies.

It is fitted on random sets of models, so it judges any set. A ridge penalty keeps weights small where the
fitting tasks say little. It is Dawid and Skene's setting with known answers (Applied Statistics 28, 1979),
without their assumption that models err independently: the weights of counts take what models share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2_serve.lab.outcomes.table import MISSING, Bools, Floats, Ints, OutcomeTable
from r2_serve.types import Record

RIDGE = 1.0
"""Penalty on squared weights, in units of one task."""
SETS_PER_TASK, MOST_ASKED = 30, 5
"""Random sets of models for each fitting task, and the size of the largest."""
NUM_COUNTS = 5
"""So many equal answers and more share one weight."""
_CLIP = 4.0
"""Standardised features end here, so that one strange reply cannot decide."""
_NEWTON_STEPS = 12


class Scales(Record):
    """Means and standard deviations by which features are standardised; those of replies by model."""

    replies: tuple[tuple[tuple[float, float], ...], ...]
    """(M, features, 2)"""
    answers: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evidence:
    """The part of a table that is seen when models are asked, standardised. Rows are tasks."""

    groups: Ints
    right: Bools
    same: Bools
    """Whether two models give one answer, (T, M, M)."""
    votes: Floats
    """Standardised features of answers, then of replies, (T, M, features)."""
    replies: Floats
    """Standardised features of replies, (T, M, features)."""
    asks: Floats
    """Standardised features of prompts, (T, features)."""

    @classmethod
    def of(cls, table: OutcomeTable, scales: Scales) -> Evidence:
        """Standardise a table by the scales of a fit."""
        replies = _standardised(table.replies, np.array(scales.replies).reshape(len(table.models), -1, 2))
        replies = np.where((table.groups == MISSING)[:, :, None], 0.0, replies)
        answers = _standardised(table.answers, np.array(scales.answers))
        groups = table.groups
        return cls(
            groups=groups,
            right=table.right,
            same=(groups[:, :, None] == groups[:, None, :]) & (groups[:, :, None] >= 0),
            votes=np.concatenate([answers, replies], axis=2),
            replies=replies,
            asks=_standardised(table.asks, np.array(scales.asks)),
        )

    @property
    def num_models(self) -> int:
        """The number of models."""
        return int(self.groups.shape[1])


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


def _standardised(values: Floats, scales: Floats) -> Floats:
    """0 where a value is unknown, or the same in all fitting tasks."""
    mean, deviation = scales[..., 0], scales[..., 1]
    scaled = (values - mean) / np.where(deviation > 1e-9, deviation, np.inf)
    return np.asarray(np.clip(np.nan_to_num(scaled), -_CLIP, _CLIP))


# -- weights -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The fitted weights, cut into their parts. `vector` holds all of them in this order."""

    vector: Floats
    num_models: int
    num_votes: int
    """Features in `Evidence.votes`."""
    num_asks: int

    def _cut(self, start: int, length: int) -> Floats:
        return np.asarray(self.vector[start : start + length])

    @property
    def model(self) -> Floats:
        """The weight of each model for the answer that it gives."""
        return self._cut(0, self.num_models)

    @property
    def count(self) -> Floats:
        """The weight of one, two, ... equal answers."""
        return np.asarray(np.r_[0.0, self._cut(self.num_models, NUM_COUNTS - 1)])

    @property
    def vote(self) -> Floats:
        """The weight of each feature in `Evidence.votes`."""
        return self._cut(self._after_counts, self.num_votes)

    @property
    def _after_counts(self) -> int:
        return self.num_models + NUM_COUNTS - 1

    @property
    def none(self) -> Floats:
        """The weights of "none": models with an answer, models without, 1, distinct answers, features."""
        return np.asarray(self.vector[self._after_counts + self.num_votes :])


def fit_weights(evidence: Evidence, rows: Ints, seed: int, *, ridge: float = RIDGE) -> Weights:
    """Fit the weights on the tasks `rows` by Newton's method."""
    tasks, asked = _random_sets(len(rows), evidence.num_models, np.random.default_rng(seed))
    tasks = rows[tasks]
    asked &= evidence.groups[tasks] != MISSING
    design, states, target, starts = _design(evidence, tasks, asked)
    weights = np.zeros(design.shape[1])
    penalty = ridge * SETS_PER_TASK
    for _ in range(_NEWTON_STEPS):
        chances = _softmax(design @ weights, states, starts)
        slope = design.T @ (target - chances) - penalty * weights
        weighted = design * chances[:, None]
        means = np.add.reduceat(weighted, starts)
        curve = weighted.T @ design - means.T @ means + penalty * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < 1e-3:
            break
    return Weights(weights, evidence.num_models, evidence.votes.shape[2], evidence.asks.shape[1])


def _random_sets(num_tasks: int, num_models: int, rng: np.random.Generator) -> tuple[Ints, Bools]:
    """The task of each state, and which models are asked in it."""
    tasks = np.repeat(np.arange(num_tasks), SETS_PER_TASK)
    sizes = rng.integers(1, min(MOST_ASKED, num_models) + 1, size=len(tasks))
    ranks = rng.random((len(tasks), num_models)).argsort(axis=1)
    return tasks, ranks < sizes[:, None]


def _design(evidence: Evidence, tasks: Ints, asked: Bools) -> tuple[Floats, Ints, Floats, Ints]:
    """The rows of the logit: one for each different answer of a state, and one for "none".

    Returns the features of each row, its state, 1 if it is what is right, and the first row of each state.
    """
    num_states, num_models = asked.shape
    groups = evidence.groups[tasks]
    votes = evidence.same[tasks] & asked[:, None, :]
    is_earlier = np.arange(num_models)[None, :] < np.arange(num_models)[:, None]
    is_head = asked & (groups >= 0) & ~(votes & is_earlier).any(axis=2)
    state, head = np.nonzero(is_head)
    voters = votes[state, head]
    count = voters.sum(axis=1)
    counts = np.eye(NUM_COUNTS)[np.minimum(count, NUM_COUNTS) - 1][:, 1:]
    features = np.einsum("rm,rmf->rf", voters, evidence.votes[tasks[state]]) / count[:, None]
    none = _none_features(evidence, tasks, asked, is_head.sum(axis=1))
    left = np.hstack([voters, counts, features])
    design = np.zeros((len(state) + num_states, left.shape[1] + none.shape[1]))
    design[: len(state), : left.shape[1]], design[len(state) :, left.shape[1] :] = left, none
    is_right = evidence.right[tasks[state], head]
    has_right = np.bincount(state, is_right, minlength=num_states) > 0
    states = np.r_[state, np.arange(num_states)]
    order = np.argsort(states, kind="stable")
    target = np.r_[is_right, ~has_right].astype(float)
    states = states[order]
    return design[order], states, target[order], np.searchsorted(states, np.arange(num_states))


def _none_features(evidence: Evidence, tasks: Ints, asked: Bools, num_answers: Ints) -> Floats:
    has_answer = evidence.groups[tasks] >= 0
    total = np.maximum(asked.sum(axis=1), 1)[:, None]
    mean = np.einsum("sm,smf->sf", asked, evidence.replies[tasks]) / total
    ones, answers = np.ones((len(tasks), 1)), np.log1p(num_answers)[:, None]
    return np.hstack([asked & has_answer, asked & ~has_answer, ones, answers, evidence.asks[tasks], mean])


def _softmax(utilities: Floats, states: Ints, starts: Ints) -> Floats:
    powers = np.exp(utilities - np.maximum.reduceat(utilities, starts)[states])
    return np.asarray(powers / np.add.reduceat(powers, starts)[states])


# -- predictions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Belief:
    """What is believed of tasks after some models were asked. All have one value for each task."""

    chance: Floats
    """The probability that the leading answer is right; 0 where there is no answer."""
    right: Bools
    """Whether the leading answer is right."""
    leader: Ints
    """The first model that gives the leading answer; -1 where there is no answer."""


def belief(evidence: Evidence, rows: Ints, asked: Sequence[int], weights: Weights) -> Belief:
    """Judge the tasks `rows` after the models `asked` have answered."""
    models = np.array(asked)
    groups = evidence.groups[np.ix_(rows, models)]
    same = evidence.same[np.ix_(rows, models, models)]
    has_answer = groups >= 0
    votes = np.maximum(same.sum(axis=2), 1)
    feature = evidence.votes[np.ix_(rows, models)] @ weights.vote
    utility = same @ weights.model[models] + weights.count[np.minimum(votes, NUM_COUNTS) - 1]
    utility += (same * feature[:, None, :]).sum(axis=2) / votes
    utility = np.where(has_answer, utility, -np.inf)
    none = _none_utility(evidence, rows, models, has_answer, votes, weights)
    top = np.maximum(utility.max(axis=1), none)
    powers = np.exp(utility - top[:, None])
    total = (powers / votes).sum(axis=1) + np.exp(none - top)
    best, at = utility.argmax(axis=1), np.arange(len(rows))
    return Belief(
        chance=powers[at, best] / total,
        right=evidence.right[rows, models[best]] & has_answer[at, best],
        leader=np.where(has_answer[at, best], models[best], -1),
    )


def _none_utility(
    evidence: Evidence,
    rows: Ints,
    models: Ints,
    has_answer: Bools,
    votes: Ints,
    weights: Weights,
) -> Floats:
    none, num_models = weights.none, weights.num_models
    is_there = evidence.groups[np.ix_(rows, models)] != MISSING
    utility = has_answer @ none[:num_models][models]
    utility += (is_there & ~has_answer) @ none[num_models : 2 * num_models][models]
    rest = none[2 * num_models :]
    num_answers = np.round((has_answer / votes).sum(axis=1))
    utility += rest[0] + rest[1] * np.log1p(num_answers)
    utility += evidence.asks[rows] @ rest[2 : 2 + weights.num_asks]
    return utility + mean_replies(evidence, rows, models) @ rest[2 + weights.num_asks :]


def mean_replies(evidence: Evidence, rows: Ints, models: Ints) -> Floats:
    """The standardised features of replies, as means over the models asked, (rows, features)."""
    is_there = evidence.groups[np.ix_(rows, models)] != MISSING
    total = np.maximum(is_there.sum(axis=1), 1)[:, None]
    return np.asarray(evidence.replies[np.ix_(rows, models)].sum(axis=1) / total)
