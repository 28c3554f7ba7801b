"""What happens to a query while it is answered, as clients may watch it."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field

from r2_serve.types.calls import FinishReason, Record
from r2_serve.types.gates import GateAsk
from r2_serve.types.plans import Plan, Subtask

MOST_CHARS = 4_000
"""How much of a text the feed of all queries shows; the stream of a query itself shows all."""

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
    began_s: float | None = None
    """Unix time at which the query came."""
    deadline_s: float | None = None
    """Seconds after which the query ends in any case: a query without an end by then has lost it."""
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
    saved_usd: Decimal | None = None
    """What the query cost less than the virtual model's baseline; None where that is not known."""
    error: str | None = None

    def without_texts(self) -> Event:
        """The same event without what clients and models wrote; of an error its type remains."""
        plan = self.plan and Plan(subtasks=tuple(_without_text(step) for step in self.plan.subtasks))
        error = self.error and self.error.partition(":")[0]
        return self.model_copy(update={"query": None, "answer": None, "error": error, "plan": plan})

    def shortened(self) -> Event:
        """The same event with texts of at most `MOST_CHARS`."""
        texts = {"query": self.query, "answer": self.answer, "error": self.error}
        update: dict[str, object] = {
            name: shortened(text) for name, text in texts.items() if text and len(text) > MOST_CHARS
        }
        if self.plan is not None and any(len(step.text) > MOST_CHARS for step in self.plan.subtasks):
            update["plan"] = shortened_plan(self.plan)
        return self.model_copy(update=update) if update else self


def shortened(text: str) -> str:
    """The beginning and the end of a text, `MOST_CHARS` together, with a mark where some are left out.

    The end of a conversation says what was asked, and a long one begins with instructions."""
    half = MOST_CHARS // 2
    return text if len(text) <= MOST_CHARS else f"{text[: half - 1]}…{text[-half:]}"


def shortened_plan(plan: Plan) -> Plan:
    """A plan to be shown. It is not checked again, as cut texts may name fewer steps than they depend on."""
    steps = (step.model_copy(update={"text": shortened(step.text)}) for step in plan.subtasks)
    return plan.model_copy(update={"subtasks": tuple(steps)})


def _without_text(step: Subtask) -> Subtask:
    return step.model_copy(update={"text": " ".join(f"#{needed}" for needed in step.depends_on) or "..."})
