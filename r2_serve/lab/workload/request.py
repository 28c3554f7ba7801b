"""One request of a workload: when it is to be sent, its text, and, where the text brings its own plan, that plan.

Texts and plans are made when read, not when drawn: a stream of millions of requests stays cheap for whoever needs only
times and token counts. Tokens are words here, as with the scripted engine; a real tokenizer counts a few more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2_serve.types import Plan, Subtask

if TYPE_CHECKING:
    from r2_serve.grading.rows import Task

_FILLER = ("and", "then", "some", "more", "of", "the", "same", "text")
"""Padding holds neither braces nor a number before the word `words`: scripted models read those."""


@dataclass(frozen=True, slots=True)
class Step:
    """One subtask of a request that brings its own plan."""

    model: str
    """The pool model that its allocation names."""
    reply_tokens: int
    depends_on: tuple[int, ...] = ()
    """Ids from 1, as in `Plan`: the whole wave before it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Synthetic ones have `steps`; those of a benchmark have a `task`, and the router plans as it likes."""

    index: int
    start_s: float
    """When it is to be sent, in seconds after the start of the run, whatever became of those before it."""
    model: str
    steps: tuple[Step, ...] | None = None
    prompt_words: int = 0
    """The text is padded to as many words."""
    task: Task | None = None

    @property
    def text(self) -> str:
        """What the user says."""
        text = self._unpadded
        missing = self.prompt_words - len(text.split())
        if missing <= 0:
            return text
        whole, rest = divmod(missing, len(_FILLER))
        return f"{text}\n{' '.join(_FILLER * whole + _FILLER[:rest])}"

    @property
    def plan(self) -> Plan | None:
        """The plan that the text brings; None where it brings none."""
        if self.steps is None:
            return None
        return Plan(
            subtasks=tuple(
                Subtask(id=i, text=_subtask_text(i, s), depends_on=s.depends_on)
                for i, s in enumerate(self.steps, 1)
            )
        )

    @property
    def allocation(self) -> tuple[str, ...] | None:
        """The pool model of each subtask."""
        return None if self.steps is None else tuple(step.model for step in self.steps)

    @property
    def reply_tokens(self) -> tuple[int, ...] | None:
        """Of each subtask; None where only the model knows."""
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
            {"id": i, "text": _subtask_text(i, s), "depends_on": s.depends_on}
            for i, s in enumerate(self.steps, 1)
        ]
        brought = {"plan": {"subtasks": subtasks}, "allocation": {"models": self.allocation}}
        return f"Synthetic task {self.index}.\n{json.dumps(brought, separators=(',', ':'))}"


def _subtask_text(number: int, step: Step) -> str:
    return f"Write {step.reply_tokens} words on topic {number}."
