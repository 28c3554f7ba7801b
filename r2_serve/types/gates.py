"""What a gate did for one step of a query: whom it asked, what it made of each answer, and which it kept."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from r2_serve.types.calls import Record

GraderName = Literal["math", "number", "choice", "text", "literal"]
"""The rule by which an answer is found in a reply and two answers are equal (`grading.answers`)."""
AskOutcome = Literal["accepted", "escalated", "failed", "refused"]
"""What became of a model of a gate: its answer was `accepted`, which ends the gate, or `escalated` to the
next model; or it `failed` to answer; or it was `refused`, not asked, as the budget left too little."""


class GateAsk(Record):
    """One model that a gate asked."""

    model: str
    outcome: AskOutcome
    evidence: str
    """The kind of evidence that decided: `agreement`, `confidence`, `checker`, `check`, `fitted`, `last` (the
    last model needs none), `error` or `budget`."""
    reason: str
    """The decision in words, such as "agrees with qwen-7b"."""
    cost_usd: Decimal = Decimal(0)
    """What asking it cost, failed attempts and the check of its answer included."""


class GateNote(Record):
    """How a gate answered one step."""

    name: str
    asked: tuple[GateAsk, ...]
    kept: str
    """The model whose answer was kept. A fitted gate may keep an earlier answer than the last."""
    chance: float | None = None
    """The probability that the kept answer is right, as a fitted gate sees it."""
