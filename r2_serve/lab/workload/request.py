"""One request of a workload: its time, its text, and the plan that the text may bring.

Texts and plans are made when they are read, not when they are drawn: a stream of millions of requests stays
cheap for a reader of times and token counts. Tokens are words here, as in the scripted engine; a real
tokenizer counts a few more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2_serve.types import Plan, Subtask

if TYPE_CHECKING:
    from r2_serve.grading.rows import Task

_FILLER = ("and", "then", "some", "more", "of", "the", "same", "text")
"""Padding has neither braces nor a number before the word `words`, which scripted models read."""


@dataclass(frozen=True, slots=True)
class Step:
    """One subtask of a request that brings its own plan."""

    model: str
    """The pool model that the request's allocation names."""
    reply_tokens: int
    depends_on: tuple[int, ...] = ()
    """Ids from 1, as in `Plan`: the whole wave before it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Synthetic ones have `steps`; a benchmark's have a `task` and no plan."""

    index: int
    start_s: float
    """Time at which it is to be sent, in seconds from the start of the run."""
    model: str
    steps: tuple[Step, ...] | None = None
    prompt_words: int = 0
    """Number of words that the text is padded to."""
    task: Task | None = None

    @property
    def text(self) -> str:
        """The user's message."""
        text = self._unpadded
        missing = self.prompt_words - len(text.split())
        if missing <= 0:
            return text
        whole, rest = divmod(missing, len(_FILLER))
        return f"{text}\n{' '.join(_FILLER * whole + _FILLER[:rest])}"

    @property
    def plan(self) -> Plan | None:
        """The plan that the text brings; None if it brings none."""
        if self.steps is None:
            return None
        return Plan(
            subtasks=tuple(
                Subtask(id=i, text=_subtask_text(i, step), depends_on=step.depends_on)
                for i, step in enumerate(self.steps, 1)
            )
        )

    @property
    def allocation(self) -> tuple[str, ...] | None:
        """The pool model of each subtask."""
        return None if self.steps is None else tuple(step.model for step in self.steps)

    @property
    def reply_tokens(self) -> tuple[int, ...] | None:
        """Reply length of each subtask; None if only the model knows."""
        return None if self.steps is None else tuple(step.reply_tokens for step in self.steps)

    @property
    def prompt_tokens(self) -> int:
        """Words of the text."""
        return max(self.prompt_words, len(self._unpadded.split()))

    @property
    def _unpadded(self) -> str:
        if self.task is not None:
            return self.task.query
        assert self.steps is not None, "a request has a task or steps"
        subtasks = [
            {"id": i, "text": _subtask_text(i, step), "depends_on": step.depends_on}
            for i, step in enumerate(self.steps, 1)
        ]
        brought = {"plan": {"subtasks": subtasks}, "allocation": {"models": self.allocation}}
        return f"Synthetic task {self.index}.\n{json.dumps(brought, separators=(',', ':'))}"


def _subtask_text(number: int, step: Step) -> str:
    return f"Write {step.reply_tokens} words on topic {number}."
