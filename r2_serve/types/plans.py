"""Plans: the subtasks of a query, how they refer to each other, and the models that they are given to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from r2_serve.types.calls import Record

REFERENCE = re.compile(r"#([1-9][0-9]{0,5})(?![0-9])")
"""`#k` in a text stands for the answer of subtask k; a number of seven or more digits is plain text."""


class Subtask(Record):
    """One step of a plan. `depends_on` names earlier ids only and includes every `#k` of `text`."""

    id: int = Field(ge=1)
    text: str = Field(min_length=1)
    depends_on: tuple[int, ...] = ()
    needs_query: bool = True
    """Whether it reads the client's conversation where steps get what they need (`context: needed`)."""

    @model_validator(mode="after")
    def _depends_on_earlier_ids(self) -> Self:
        if any(not 1 <= dependency < self.id for dependency in self.depends_on):
            raise ValueError(
                f"subtask {self.id} depends on {list(self.depends_on)}: "
                f"only ids from 1 to {self.id - 1} may be named"
            )
        missing = references(self.text) - set(self.depends_on)
        if missing:
            raise ValueError(
                f"subtask {self.id} uses {sorted(missing)} in its text but does not depend on them"
            )
        return self


class Plan(Record):
    """The subtasks of a query, with ids 1..n in order; acyclic by construction."""

    subtasks: tuple[Subtask, ...] = Field(min_length=1)
    answer: str | None = None
    """Template over subtask answers (`"#2 #1"`), filled without a call; None for the last answer as it is."""

    @model_validator(mode="after")
    def _ids_are_consecutive(self) -> Self:
        ids = [subtask.id for subtask in self.subtasks]
        if ids != list(range(1, len(ids) + 1)):
            raise ValueError(f"subtask ids must be 1..{len(ids)} in order, got {ids[:20]}")
        unknown = references(self.answer or "") - set(ids)
        if unknown:
            raise ValueError(f"the answer template uses unknown subtasks {sorted(unknown)[:20]}")
        if self.answer is not None and not references(self.answer):
            raise ValueError("the answer template refers to no subtask")
        if any("\ud800" <= character <= "\udfff" for character in self.answer or ""):
            raise ValueError("the answer template holds half of a surrogate pair, which no reply can carry")
        return self

    @classmethod
    def single(cls, query: str) -> Plan:
        """The plan whose only subtask is the query itself. `#k` in a user's text is not a reference."""
        return cls(subtasks=(Subtask(id=1, text=REFERENCE.sub(r"# \1", query) or "(empty)"),))

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Subtask ids by level: a subtask is one level below the deepest subtask that it depends on."""
        level_of: dict[int, int] = {}
        for subtask in self.subtasks:
            level_of[subtask.id] = 1 + max((level_of[d] for d in subtask.depends_on), default=0)
        last = max(level_of.values())
        return tuple(tuple(i for i in level_of if level_of[i] == level) for level in range(1, last + 1))

    @property
    def depth(self) -> int:
        """Number of subtasks on the longest chain."""
        return len(self.levels)

    @property
    def width(self) -> int:
        """Number of subtasks on the widest level."""
        return max(map(len, self.levels))

    @property
    def final_id(self) -> int | None:
        """The subtask whose reply is the answer; None if a template makes the answer."""
        return self.subtasks[-1].id if self.answer is None else None


def references(text: str) -> set[int]:
    """Ids that `text` refers to as `#k`."""
    return {int(match) for match in REFERENCE.findall(text)}


def substitute(text: str, answers: Mapping[int, str]) -> str:
    """`text` with each `#k` replaced by the answer of subtask k; an answer is never rescanned.

    Raises: KeyError if an answer is missing.
    """
    return REFERENCE.sub(lambda match: answers[int(match.group(1))], text)


def substituted_chars(text: str, answers: Mapping[int, str]) -> int:
    """Length of `substitute(text, answers)`, computed without building it, as it may be huge."""
    return len(text) + sum(
        len(answers[int(match.group(1))]) - len(match.group()) for match in REFERENCE.finditer(text)
    )


class Allocation(Record):
    """One pool model for each subtask, in the order of the plan."""

    models: tuple[str, ...] = Field(min_length=1)
