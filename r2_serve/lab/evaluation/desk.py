"""One task under one policy: `Desk` makes its asks, keeps every call that they cost, and gives the outcome.

All policies share it, so that they share one ledger: a call is counted with its price whichever policy asked
for it, and even if it did not help.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.asker import Asked, Asker, AskFailed
from r2_serve.types import CallRecord, CallStage, Message, ModelCard, Plan, Query, Record, Sampling

_PLAIN = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Setting:
    """What a policy may know of the router it asks."""

    virtual_model: str
    pool: tuple[str, ...]
    """Models of the virtual model's pool, cheapest first."""
    cards: dict[str, ModelCard]
    gates: tuple[str, ...] = ()
    """Gates of the virtual model, which policies of serving may name."""
    max_subtasks: int = 16
    seed: int = 0
    mute: frozenset[str] = frozenset()
    """Models that report no log-probabilities, so that their confidence is never known."""


@dataclass(frozen=True)
class Solved:
    """A policy's answer, and the plan behind it if there was one."""

    text: str
    plan: Plan | None = None
    models: tuple[str, ...] = ()
    """The model that answered each subtask, in plan order."""
    is_plan_fallback: bool = False
    answers: tuple[str, ...] = ()
    """The answer to each subtask, in plan order."""

    @classmethod
    def of(cls, asked: Asked) -> Solved:
        trace = asked.trace
        models = tuple(result.model for result in trace.results)
        answers = tuple(result.answer for result in trace.results)
        return cls(asked.text, trace.plan, models, trace.plan_fallback is not None, answers)


class EvalOutcome(Record):
    """The answer to one task under one policy, or what stopped it, with all its calls."""

    answer: str | None
    error: str | None = None
    calls: tuple[CallRecord, ...] = ()
    is_cost_known: bool = True
    """False if a failed request did not report its calls."""
    num_subtasks: int = 0
    width: int = 0
    """Number of subtasks on the widest level of the plan."""
    depth: int = 0
    subtask_models: tuple[str, ...] = ()
    is_plan_fallback: bool = False
    latency_s: float = 0.0
    plan: Plan | None = None
    step_answers: tuple[str, ...] = ()
    """The answer to each subtask, in plan order."""
    request_ids: tuple[str, ...] = ()
    """The ids of the requests that were made, in order; an endpoint's traces have them."""
    num_reused: int = 0
    """Replies that came from the book. The latency of such a task was not measured."""
    unpaid_usd: Decimal = Decimal(0)
    """The cost less what was paid for this task: replies from the book, and a change of prices since."""


class EvalPolicy(Protocol):
    """One way of answering."""

    @property
    def name(self) -> str: ...

    async def answer(self, task: Task, desk: Desk) -> Solved:
        """Raises: AskFailed."""
        ...


@dataclass
class Desk:
    """Asks for one task on behalf of one policy."""

    asker: Asker
    setting: Setting
    owner: str
    """Policy and task: request ids, and so every seeded draw, come from it."""
    clock: Callable[[], float] = time.monotonic
    calls: list[CallRecord] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    is_cost_known: bool = True

    def __post_init__(self) -> None:
        self._start_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self._start_s

    async def ask(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        stage: CallStage | None = None,
        subtask: int | None = None,
        sampling: Sampling = _PLAIN,
        policy: str | None = None,
        plan: Plan | None = None,
        is_plan_only: bool = False,
    ) -> Asked:
        """Send one query. `stage` and `subtask` tell the ledger the purpose of a plain call of a pool model.

        Raises: AskFailed.
        """
        query = Query(
            request_id=self._next_request_id(),
            model=model,
            messages=tuple(messages),
            sampling=sampling,
            policy=policy,
            plan=plan,
            is_plan_only=is_plan_only,
            priority="batch",
        )
        asked_s = self.elapsed_s
        try:
            asked = await self.asker.ask(query)
        except AskFailed as e:
            self.is_cost_known &= e.is_cost_known
            self._keep(e.calls, asked_s, stage, subtask)
            raise
        self._keep(asked.trace.calls, asked_s, stage, subtask)
        return asked

    def _next_request_id(self) -> str:
        number = len(self.request_ids) + 1
        digest = hashlib.sha256(f"{self.setting.seed}/{self.owner}/{number}".encode()).hexdigest()
        self.request_ids.append(f"eval-{digest[:32]}")
        return self.request_ids[-1]

    def _keep(
        self, calls: Sequence[CallRecord], asked_s: float, stage: CallStage | None, subtask: int | None
    ) -> None:
        for call in calls:
            named = {"stage": stage or call.stage, "subtask": call.subtask if subtask is None else subtask}
            times = {"start_s": round(call.start_s + asked_s, 6), "end_s": round(call.end_s + asked_s, 6)}
            self.calls.append(call.model_copy(update={**named, **times}))

    def outcome(self, solved: Solved | None, error: str | None = None) -> EvalOutcome:
        plan = solved.plan if solved else None
        return EvalOutcome(
            answer=solved.text if solved else None,
            error=error,
            calls=tuple(self.calls),
            is_cost_known=self.is_cost_known,
            num_subtasks=len(plan.subtasks) if plan else 0,
            width=plan.width if plan else 0,
            depth=plan.depth if plan else 0,
            subtask_models=solved.models if solved else (),
            is_plan_fallback=solved.is_plan_fallback if solved else False,
            latency_s=round(self.elapsed_s, 6),
            plan=plan,
            step_answers=solved.answers if solved else (),
            request_ids=tuple(self.request_ids),
        )


async def outcome_of(policy: EvalPolicy, task: Task, asker: Asker, setting: Setting) -> EvalOutcome:
    """Let `policy` answer `task`. A failure is an outcome with its cost, never an exception."""
    desk = Desk(asker, setting, owner=f"{policy.name}/{task.benchmark}/{task.id}")
    try:
        return desk.outcome(await policy.answer(task, desk))
    except AskFailed as e:
        return desk.outcome(None, e.message)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one message."""
    return (Message(role="user", content=text),)
