"""A book as arrays: a row for each task, a column for each model.

`T` is the number of tasks and `M` the number of models. Tasks and models have the order in which the book
names them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
