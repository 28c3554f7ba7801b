"""How probable it is that the leading answer is right, given which models were asked and what they answered.

The model is a conditional logit over the different answers of one task and "none of them is right":

- An answer's utility is the sum of a weight for each model that gives it, a weight for the number of those
  models, and weights for the features of the answer and of its replies (means over the models that give it).
- The utility of "none" is the sum of a weight for each model asked, with and without an answer, the logarithm
  of the number of different answers, and weights for the features of the prompt and of all replies.

The weights are fitted by `lab.outcomes.posterior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2_serve.gates.table import MISSING, Bools, Floats, Ints, OutcomeTable
from r2_serve.types import Record

NUM_COUNTS = 5
"""So many equal answers and more share one weight."""
_CLIP = 4.0
"""Standardised features end here, so that one strange reply cannot decide."""


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


def _standardised(values: Floats, scales: Floats) -> Floats:
    """0 where a value is unknown, or the same in all fitting tasks."""
    mean, deviation = scales[..., 0], scales[..., 1]
    scaled = (values - mean) / np.where(deviation > 1e-9, deviation, np.inf)
    return np.asarray(np.clip(np.nan_to_num(scaled), -_CLIP, _CLIP))


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


@dataclass(frozen=True)
class Utilities:
    """The weights of a table's tasks, multiplied by their features: what remains is to add them up.

    Each task has the weights of its fold. `T` is the number of tasks, `M` that of models.
    """

    evidence: Evidence
    model: Floats
    """The weight of a model for its answer, (T, M)."""
    vote: Floats
    """The weight of the features of an answer and its reply, (T, M)."""
    count: Floats
    """The weight of one, two, ... equal answers, (T, NUM_COUNTS)."""
    none: Floats
    """The utility of "none" before any model is asked, (T,)."""
    heard: Floats
    """What a model that is asked adds to it, (T, M)."""
    reply: Floats
    """What the features of its reply add to it, as a mean over the models asked, (T, M)."""
    different: Floats
    """What the logarithm of the number of different answers adds to it, (T,)."""

    @classmethod
    def of(cls, evidence: Evidence, weights: Sequence[Weights], fold: Ints) -> Utilities:
        """The utilities of all tasks; `weights` has those of each fold."""
        num_models, num_asks = weights[0].num_models, weights[0].num_asks
        none = np.stack([w.none for w in weights])[fold]
        rest = none[:, 2 * num_models :]
        vote = np.stack([w.vote for w in weights])[fold]
        has_answer, is_missing = evidence.groups >= 0, evidence.groups == MISSING
        heard = np.where(has_answer, none[:, :num_models], none[:, num_models : 2 * num_models])
        return cls(
            evidence=evidence,
            model=np.stack([w.model for w in weights])[fold],
            vote=np.einsum("tmf,tf->tm", evidence.votes, vote),
            count=np.stack([w.count for w in weights])[fold],
            none=rest[:, 0] + (evidence.asks * rest[:, 2 : 2 + num_asks]).sum(axis=1),
            heard=np.where(is_missing, 0.0, heard),
            reply=np.einsum("tmf,tf->tm", evidence.replies, rest[:, 2 + num_asks :]),
            different=rest[:, 1],
        )


@dataclass(frozen=True)
class Belief:
    """What is believed of tasks after some models were asked. All have one value for each task."""

    chance: Floats
    """The probability that the leading answer is right; 0 where there is no answer."""
    right: Bools
    """Whether the leading answer is right."""
    leader: Ints
    """The first model that gives the leading answer; -1 where there is no answer."""
    features: Floats
    """Equal answers, different answers, and the mean features of replies, (T, features)."""


def belief(utilities: Utilities, asked: Sequence[int]) -> Belief:
    """Judge all tasks after the models `asked` have answered."""
    evidence, models, at = utilities.evidence, np.array(asked), np.arange(len(utilities.none))
    groups = evidence.groups[:, models]
    has_answer, num_replies = groups >= 0, np.maximum((groups != MISSING).sum(axis=1), 1)
    same = evidence.same[:, models[:, None], models[None, :]].astype(float)
    equal = same.sum(axis=2)
    votes = np.maximum(equal, 1.0)
    utility = np.einsum("tij,tj->ti", same, utilities.model[:, models])
    utility += np.einsum("tij,tj->ti", same, utilities.vote[:, models]) / votes
    utility += utilities.count[at[:, None], np.minimum(votes, NUM_COUNTS).astype(np.int64) - 1]
    utility = np.where(has_answer, utility, -np.inf)
    num_different = (has_answer / votes).sum(axis=1).round()
    none = utilities.none + utilities.heard[:, models].sum(axis=1)
    none = none + utilities.reply[:, models].sum(axis=1) / num_replies
    none = none + utilities.different * np.log1p(num_different)
    best = utility.argmax(axis=1)
    top = np.maximum(utility[at, best], none)
    powers = np.exp(utility - top[:, None])
    replies = evidence.replies[:, models].sum(axis=1) / num_replies[:, None]
    return Belief(
        chance=powers[at, best] / ((powers / votes).sum(axis=1) + np.exp(none - top)),
        right=evidence.right[at, models[best]] & has_answer[at, best],
        leader=np.where(has_answer[at, best], models[best], -1),
        features=np.column_stack([equal.max(axis=1), num_different, replies]),
    )
