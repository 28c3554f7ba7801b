"""A book as arrays: a row for each task, a column for each model.

`T` is the number of tasks and `M` the number of models. Tasks and models have the order in which the book
names them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from r2_serve.lab.outcomes.book import BookError, Outcome
from r2_serve.lab.outcomes.features import (
    ANSWER_FEATURES,
    PROMPT_FEATURES,
    REPLY_FEATURES,
    answer_features,
    prompt_features,
    reply_features,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
NO_ANSWER, MISSING = -1, -2
"""Values of `groups`: the reply has no answer; the book has no reply."""


@dataclass(frozen=True)
class OutcomeTable:
    """The replies to whole tasks. A missing reply is not right, costs nothing and says nothing."""

    tasks: tuple[str, ...]
    prompts: tuple[str, ...]
    models: tuple[str, ...]
    groups: Ints
    """The group of each answer, `NO_ANSWER` or `MISSING`, (T, M)."""
    right: Bools
    """(T, M)"""
    cost_usd: Floats
    """(T, M)"""
    confidence: Floats
    """NaN where the book has none, (T, M)."""
    propensity: Floats
    """NaN where the book has none, (T, M)."""
    replies: Floats
    """`REPLY_FEATURES` as they are, (T, M, features)."""
    answers: Floats
    """`ANSWER_FEATURES` as they are, (T, M, features)."""
    asks: Floats
    """`PROMPT_FEATURES` as they are, (T, features)."""

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def is_asked(self) -> Bools:
        """Whether the book has a reply, (T, M)."""
        return np.asarray(self.groups != MISSING)

    @property
    def accuracy(self) -> Floats:
        """The share of all tasks that each model alone gets right, (M,)."""
        return np.asarray(self.right.mean(axis=0))

    @property
    def mean_cost_usd(self) -> Floats:
        """The mean cost of a reply, (M,); 0 for a model without replies."""
        counts = self.is_asked.sum(axis=0)
        return np.asarray(self.cost_usd.sum(axis=0) / np.maximum(counts, 1))

    def take(self, rows: npt.NDArray[np.integer] | Bools) -> OutcomeTable:
        """The table of these tasks alone."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            tasks=tuple(self.tasks[i] for i in places),
            prompts=tuple(self.prompts[i] for i in places),
            **{name: getattr(self, name)[places] for name in (*_BY_MODEL, "asks")},
        )

    def only(self, models: Sequence[str]) -> OutcomeTable:
        """The table of these models alone, in this order. Raises: BookError if one is not in it."""
        places = [self.place(model) for model in models]
        columns = {name: getattr(self, name)[:, places] for name in _BY_MODEL}
        return replace(self, models=tuple(models), **columns)

    def at_prices(self, factors: dict[str, float]) -> OutcomeTable:
        """The table in which the cost of each named model is multiplied by its factor."""
        scale = np.array([factors.get(model, 1.0) for model in self.models])
        return replace(self, cost_usd=self.cost_usd * scale)

    def place(self, model: str) -> int:
        """The column of a model. Raises: BookError."""
        if model not in self.models:
            raise BookError(f"the book has no model {model!r}; it has {', '.join(self.models)}")
        return self.models.index(model)


_BY_MODEL = ("groups", "right", "cost_usd", "confidence", "propensity", "replies", "answers")


def table_of(records: Iterable[Outcome]) -> OutcomeTable:
    """The table of all records of whole tasks. Raises: BookError if there are none, or none is graded."""
    whole = [record for record in records if not record.step]
    tasks = {task: i for i, task in enumerate(dict.fromkeys(record.task for record in whole))}
    models = {model: i for i, model in enumerate(dict.fromkeys(record.model for record in whole))}
    if not whole or all(record.right is None for record in whole):
        raise BookError(
            "the book holds no graded reply to a whole task: grade it with r2-serve outcomes grade"
        )
    shape = len(tasks), len(models)
    prompts = [""] * len(tasks)
    groups, right, cost = np.full(shape, MISSING), np.zeros(shape, bool), np.zeros(shape)
    confidence, propensity = np.full(shape, np.nan), np.full(shape, np.nan)
    replies, answers = np.zeros((*shape, len(REPLY_FEATURES))), np.zeros((*shape, len(ANSWER_FEATURES)))
    for record in whole:
        at = tasks[record.task], models[record.model]
        prompts[at[0]] = prompts[at[0]] or record.prompt
        groups[at] = NO_ANSWER if record.group is None else record.group
        right[at], cost[at] = bool(record.right), float(record.cost_usd)
        confidence[at] = np.nan if record.confidence is None else record.confidence
        propensity[at] = np.nan if record.propensity is None else record.propensity
        replies[at] = reply_features(record.reply, record.confidence)
        answers[at] = answer_features(record.answer)
    return OutcomeTable(
        tasks=tuple(tasks),
        prompts=tuple(prompts),
        models=tuple(models),
        groups=_with_right_groups(groups, right),
        right=right,
        cost_usd=cost,
        confidence=confidence,
        propensity=propensity,
        replies=replies,
        answers=answers,
        asks=np.array([prompt_features(prompt) for prompt in prompts]).reshape(-1, len(PROMPT_FEATURES)),
    )


def _with_right_groups(groups: Ints, right: Bools) -> Ints:
    """All right answers of a task in one group, also where the file gave a verdict and no answer."""
    return np.where(right, 0, np.where((groups == 0) & ~right, NO_ANSWER, groups))
