"""Runs one gate for one step: asks its models in turn until its judge accepts an answer. No Ray.

Only this step is redone. A model that fails counts as one whose answer was not enough. If the models or the
budget end before an answer is accepted, the best answer there is is kept, as it is paid for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from r2_serve.calls.caller import CallResult
from r2_serve.calls.ledger import Ledger, total_cost_usd
from r2_serve.calls.retry_rules import Failure, most_telling
from r2_serve.errors import BudgetExceeded, EngineError
from r2_serve.router.evidence import Heard, Question, Verdict
from r2_serve.router.gates import Gate
from r2_serve.types import GateAsk, GateNote
from r2_serve.types.gates import AskOutcome, EvidenceKind

Asks = Callable[[str, bool], Awaitable[CallResult]]
"""Asks a model of a gate; the second argument tells whether it is the last one."""
_NO_MONEY = "the budget leaves too little for another model"


@dataclass
class GateRun:
    """One gate at work on one step."""

    gate: Gate
    models: Sequence[str]
    """The models of the gate that can take the step, in order."""
    question: Question
    ask: Asks
    num_asked: int
    """Models that the budgets pay for, at most."""
    tell: Callable[[GateAsk], None]
    """Takes each model that was asked, with what became of its answer."""
    _heard: list[Heard] = field(default_factory=list)
    _notes: list[GateAsk] = field(default_factory=list)
    _failures: list[Failure] = field(default_factory=list)

    async def run(self) -> tuple[CallResult, GateNote]:
        """The answer that is kept, and what was asked for it.

        Raises: the most telling EngineError if no model answered; BudgetExceeded if none can be paid.
        """
        verdict = None
        for model in self.models[: self.num_asked]:
            verdict = await self._one(model)
            if verdict is not None and verdict.is_accepted:
                return self._kept(verdict)
            if self._notes[-1].outcome == "refused":
                break
        else:
            if self.num_asked < len(self.models):
                self._note(self.models[self.num_asked], "refused", "budget", _NO_MONEY, Decimal(0))
        if not self._heard:
            raise most_telling(self._failures)
        last = self._heard[-1].model
        return self._kept(await self.gate.judge.verdict(self.question, self._heard, last, is_last=True))

    async def _one(self, model: str) -> Verdict | None:
        """Ask one model and judge its answer; None if there is none."""
        ledger, is_last = self.question.caller.ledger, model == self.models[-1]
        first_call = len(ledger.calls)
        try:
            call = await self.ask(model, is_last)
        except EngineError as e:
            self._failures.append(Failure(e, is_by_first=model == self.models[0]))
            reason = f"{type(e).__name__}: {e.message[:120]}"
            self._note(model, "failed", "error", reason, self._usd_since(ledger, first_call))
            return None
        except BudgetExceeded:
            if not self._heard:
                raise
            self._note(model, "refused", "budget", _NO_MONEY, self._usd_since(ledger, first_call))
            return None
        self._heard.append(Heard(call))
        verdict = await self.gate.judge.verdict(self.question, self._heard, model, is_last=is_last)
        outcome: AskOutcome = "accepted" if verdict.is_accepted else "escalated"
        self._note(model, outcome, verdict.evidence, verdict.reason, self._usd_since(ledger, first_call))
        return verdict

    def _kept(self, verdict: Verdict) -> tuple[CallResult, GateNote]:
        call = self._heard[verdict.kept].call
        note = GateNote(name=self.gate.name, asked=tuple(self._notes), kept=call.model, chance=verdict.chance)
        return call, note

    def _note(
        self, model: str, outcome: AskOutcome, evidence: EvidenceKind, reason: str, usd: Decimal
    ) -> None:
        asked = GateAsk(model=model, outcome=outcome, evidence=evidence, reason=reason, cost_usd=usd)
        self._notes.append(asked)
        self.tell(asked)

    def _usd_since(self, ledger: Ledger, first_call: int) -> Decimal:
        calls = ledger.calls[first_call:]
        return total_cost_usd(call for call in calls if call.subtask == self.question.subtask)
