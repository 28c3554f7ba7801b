"""Fits the weights by which `gates.belief` says how probable it is that the leading answer is right.

It is fitted on random sets of models, so it judges any set. A ridge penalty keeps weights small where the
fitting tasks say little. It is Dawid and Skene's setting with known answers (Applied Statistics 28, 1979),
without their assumption that models err independently: the weights of counts take what models share.
"""

from __future__ import annotations

import numpy as np

from r2_serve.gates.belief import NUM_COUNTS, Evidence, Scales, Weights
from r2_serve.gates.table import MISSING, Bools, Floats, Ints, OutcomeTable

RIDGE = 1.0
"""Penalty on squared weights, in units of one task."""
SETS_PER_TASK, MOST_ASKED = 30, 5
"""Random sets of models for each fitting task, and the size of the largest."""
_NEWTON_STEPS, _SMALL_STEP = 12, 0.01


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
    tasks, asked = _random_sets(len(rows), evidence.num_models, np.random.default_rng(seed))
    tasks = rows[tasks]
    asked &= evidence.groups[tasks] != MISSING
    design, states, target, starts = _design(evidence, tasks, asked)
    weights = np.zeros(design.shape[1]) if start is None else start.vector.copy()
    penalty = RIDGE * SETS_PER_TASK
    for _ in range(_NEWTON_STEPS):
        chances = _softmax(design @ weights, states, starts)
        slope = design.T @ (target - chances) - penalty * weights
        weighted = design * chances[:, None]
        means = np.add.reduceat(weighted, starts)
        curve = weighted.T @ design - means.T @ means + penalty * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < _SMALL_STEP:
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
