"""A book as arrays: a row for each task, a column for each model.

`T` is the number of tasks and `M` the number of models. Tasks and models have the order in which the book
names them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from r2_serve.errors import BookError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
NO_ANSWER, MISSING = -1, -2
"""Values of `groups`: the reply has no answer; the book has no reply."""


@dataclass(frozen=True)
class OutcomeTable:
    """The replies to whole tasks. A missing reply says nothing, and is neither right nor wrong."""

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
        """The share of its replies that each model alone gets right, (M,); 0 without replies."""
        return np.asarray(self.right.sum(axis=0) / np.maximum(self.is_asked.sum(axis=0), 1))

    @property
    def expected_right(self) -> Floats:
        """1 or 0 for each reply, and the mean of the model's replies where it has none, (T, M)."""
        return np.where(self.is_asked, self.right, self.accuracy)

    @property
    def expected_cost_usd(self) -> Floats:
        """The cost of each reply, and the mean of the model's replies where it has none, (T, M)."""
        return np.where(self.is_asked, self.cost_usd, self.mean_cost_usd)

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

    def with_reply_of(self, model: str) -> OutcomeTable:
        """The table of the tasks to which this model has a reply. Raises: BookError if it has none."""
        is_asked = self.is_asked[:, self.place(model)]
        if not is_asked.any():
            raise BookError(f"the book has no reply of {model!r} to compare with")
        return self if is_asked.all() else self.take(is_asked)

    @cached_property
    def same_prompt(self) -> Ints:
        """A number for each prompt, in order of appearance; tasks with one prompt have one number, (T,).

        A task without a prompt is like no other.
        """
        numbers: dict[str, int] = {}
        named = (prompt or f"\0{task}" for task, prompt in zip(self.tasks, self.prompts, strict=True))
        return np.array([numbers.setdefault(name, len(numbers)) for name in named], np.int64)

    @property
    def num_prompts(self) -> int:
        """The number of different prompts."""
        return int(self.same_prompt.max()) + 1

    def halves(self, seed: int) -> tuple[Ints, Ints]:
        """The tasks of two random halves; tasks with one prompt stay together."""
        prompts = self.same_prompt
        order = np.random.default_rng(seed).permutation(self.num_prompts)
        sizes = np.bincount(prompts)[order].cumsum()
        is_first = np.isin(prompts, order[sizes <= max(len(self) // 2, sizes[0])])
        return np.flatnonzero(is_first), np.flatnonzero(~is_first)

    def folds(self, number: int, seed: int) -> Ints:
        """The fold of each task at random, (T,); tasks with one prompt are in one fold."""
        order = np.random.default_rng(seed).permutation(self.num_prompts)
        return np.asarray((order % number)[self.same_prompt])

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
