"""What happens to a query while it is answered, as clients may watch it."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field

from r2_serve.types.calls import FinishReason, Record
from r2_serve.types.gates import GateAsk
from r2_serve.types.plans import Plan, Subtask

EventKind = Literal[
    "started",
    "decided",
    "planned",
    "allocated",
    "step_started",
    "called",
    "asked",
    "step_done",
    "answered",
    "failed",
]


class CalledModel(Record):
    """A call of a model that has ended."""

    stage: str
    model: str
    attempt: int
    outcome: Literal["ok", "failed", "cancelled"]
    error: str | None = None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal
    start_s: float
    end_s: float


class Event(Record):
    """One thing that happened. Fields that do not belong to its kind are None.

    `started`: the query came. `decided`: it is split or not. `planned`: there is a plan. `allocated`: each
    step has a model or a gate. `step_started` and `step_done`: one step. `called`: a call of a model ended,
    well or not. `asked`: a gate judged the answer of one of its models. `answered` or `failed`: the end.
    """

    version: Literal[1] = 1
    """Version of this format; a change that would break a reader gets a new one."""
    kind: EventKind
    request_id: str
    model: str
    """The model that the client asked for."""
    client: str = ""
    """Name of the client's key; empty without keys."""
    at_s: float = Field(ge=0)
    """Seconds since the query began."""
    query: str | None = None
    action: Literal["whole", "planned"] | None = None
    reason: str | None = None
    """Why the query is split or not."""
    direct_usd: Decimal | None = None
    """Expected cost of asking the default model for all of it."""
    plan: Plan | None = None
    models: tuple[str, ...] | None = None
    """The model or gate of each step, in the order of the steps."""
    subtask: int | None = None
    called: CalledModel | None = None
    asked: GateAsk | None = None
    answer: str | None = None
    """The answer of a step, or of the query."""
    finish_reason: FinishReason | None = None
    cost_usd: Decimal | None = None
    """What the step, or the query so far, cost."""
    error: str | None = None

    def without_texts(self) -> Event:
        """The same event without what clients and models wrote."""
        plan = self.plan and Plan(subtasks=tuple(_without_text(step) for step in self.plan.subtasks))
        return self.model_copy(update={"query": None, "answer": None, "error": None, "plan": plan})


def _without_text(step: Subtask) -> Subtask:
    return step.model_copy(update={"text": " ".join(f"#{needed}" for needed in step.depends_on) or "..."})
