"""Gates: which models are asked in turn, on what evidence an answer is accepted, and what came of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from r2_serve.types.calls import Record

GraderName = Literal["math", "number", "choice", "text", "literal"]
"""The rule by which an answer is found in a reply and two answers are equal (`grading.answers`)."""
Sameness = Literal["math", "number", "choice", "text", "literal", "executed"]
"""When two answers agree: by the rule of a grader, or `executed`: their Python code gives one value."""
MOST_ASKED = 8
"""Models that one gate may ask."""


class Agreement(Record):
    """Enough models give the same answer. Calls of tools agree if names and arguments are equal."""

    kind: Literal["agreement"]
    by: Sameness = "text"
    """How answers are compared. `text` reads the whole answer, without case, articles and punctuation."""
    votes: int = Field(default=2, ge=2, le=MOST_ASKED)
    """Models that have to give the same answer, the latest included."""


class Confidence(Record):
    """The model is sure of the tokens that it wrote. It needs models that report log-probabilities."""

    kind: Literal["confidence"]
    at_least: float = Field(gt=0, le=1)
    """The least 0.4-quantile of the tokens' probabilities, as `r2.confidence` shows it."""


class Checker(Record):
    """Another model reads the question and the answer and says yes."""

    kind: Literal["checker"]
    model: str
    """The model that checks: any of `models`."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest reply of the checker, which begins with yes or no or ends with a stated answer."""


class Check(Record):
    """Your own function says yes."""

    kind: Literal["check"]
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path MODULE:NAME of a function that takes the question and the answer, both texts, and returns
    true or false. It may be `async`; others run in a thread."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which the answer counts as not accepted."""


Evidence = Annotated[Agreement | Confidence | Checker | Check, Field(discriminator="kind")]


class GateSpec(Record):
    """Models that are asked in turn, until the evidence accepts an answer."""

    ask: tuple[str, ...] = Field(min_length=2, max_length=MOST_ASKED)
    """Models in the order in which they are asked; the answer of the last one needs no evidence."""
    accept: tuple[Evidence, ...] = Field(min_length=1)
    """Evidence of which one kind is enough. The kinds are tried in this order."""

    @model_validator(mode="after")
    def _can_accept(self) -> Self:
        if len(set(self.ask)) < len(self.ask):
            raise ValueError("a gate asks each model once: a model that agrees with itself proves nothing")
        for evidence in self.accept:
            if isinstance(evidence, Agreement) and evidence.votes > len(self.ask):
                raise ValueError(f"{evidence.votes} votes are more than the {len(self.ask)} models asked")
        return self


AskOutcome = Literal["accepted", "escalated", "failed", "refused"]
"""What became of a model of a gate: its answer was `accepted`, which ends the gate, or `escalated` to the
next model; or it `failed` to answer; or it was `refused`, not asked, as the budget left too little."""
EvidenceKind = Literal["agreement", "confidence", "checker", "check", "fitted", "last", "error", "budget"]
"""What decided about one answer: `last` is the last model, whose answer needs no evidence."""


class GateAsk(Record):
    """One model that a gate asked."""

    model: str
    outcome: AskOutcome
    evidence: EvidenceKind
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

    @property
    def num_asked(self) -> int:
        """Models that were asked."""
        return sum(ask.outcome != "refused" for ask in self.asked)

    @property
    def evidence(self) -> EvidenceKind | None:
        """What accepted the kept answer; None if none was accepted, and the best there is was kept."""
        return next((ask.evidence for ask in self.asked if ask.outcome == "accepted"), None)
