"""How generated domains draw the problems of a split."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "test"]


class Drawn(Protocol):
    """A generated problem."""

    @property
    def key(self) -> str:
        """A text that only equal problems share."""
        ...

    @property
    def is_held_out(self) -> bool:
        """Whether the problem belongs to the test split."""
        ...


Problem = TypeVar("Problem", bound=Drawn)


def distinct(
    draw: Callable[[random.Random], Problem], rng: random.Random, split: Split, num_problems: int
) -> list[Problem]:
    """`num_problems` different problems of a split, in the order in which they were drawn."""
    found: dict[str, Problem] = {}
    while len(found) < num_problems:
        problem = draw(rng)
        if problem.is_held_out == (split == "test"):
            found.setdefault(problem.key, problem)
    return list(found.values())
