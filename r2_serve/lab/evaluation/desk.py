"""One task under one policy: `Desk` makes its asks, keeps every call that they cost, and says what came of it.

All policies share it, so that they share one ledger: a call is counted with its price whoever asked for it and
whether or not it helped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    """Of the virtual model, cheapest first."""
    cards: dict[str, ModelCard]
    max_subtasks: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Solved:
    """A policy's answer, and the plan behind it where there was one."""

    text: str
    plan: Plan | None = None
    models: tuple[str, ...] = ()
    """Who answered each subtask, in plan order."""
    is_plan_fallback: bool = False

    @classmethod
    def of(cls, asked: Asked) -> Solved:
        trace = asked.trace
        return cls(
            asked.text,
            trace.plan,
            tuple(result.model for result in trace.results),
            trace.plan_fallback is not None,
        )


class EvalOutcome(Record):
    """What became of one task under one policy."""

    answer: str | None
    error: str | None = None
    calls: tuple[CallRecord, ...] = ()
    is_cost_known: bool = True
    """False where a failed request did not tell its calls."""
    num_subtasks: int = 0
    width: int = 0
    """Most subtasks on one level of the plan."""
    depth: int = 0
    subtask_models: tuple[str, ...] = ()
    is_plan_fallback: bool = False
    latency_s: float = 0.0


class EvalPolicy(Protocol):
    """One way of answering."""

    @property
    def name(self) -> str: ...

    async def answer(self, task: Task, desk: Desk) -> Solved:
        """Raises: AskFailed."""
        ...


@dataclass
class Desk:
    """Asks for one task, in the name of one policy."""

    asker: Asker
    setting: Setting
    owner: str
    """Policy and task: request ids, and so every seeded draw, come from it."""
    clock: Callable[[], float] = time.monotonic
    calls: list[CallRecord] = field(default_factory=list)
    is_cost_known: bool = True

    def __post_init__(self) -> None:
        self._start_s, self._num_asks = self.clock(), 0

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
        """One query. `stage` and `subtask` say in the ledger what a plain call of a pool model was for.

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
        self._num_asks += 1
        return f"eval-{hashlib.sha256(f'{self.setting.seed}/{self.owner}/{self._num_asks}'.encode()).hexdigest()[:32]}"

    def _keep(
        self, calls: Sequence[CallRecord], asked_s: float, stage: CallStage | None, subtask: int | None
    ) -> None:
        for call in calls:
            named = {"stage": stage or call.stage, "subtask": call.subtask if subtask is None else subtask}
            times = {"start_s": round(call.start_s + asked_s, 6), "end_s": round(call.end_s + asked_s, 6)}
            self.calls.append(call.model_copy(update={**named, **times}))


async def outcome_of(policy: EvalPolicy, task: Task, asker: Asker, setting: Setting) -> EvalOutcome:
    """`policy`'s answer to `task`, or what stopped it: a failure is an outcome with its cost, never an exception."""
    desk = Desk(asker, setting, owner=f"{policy.name}/{task.benchmark}/{task.id}")
    try:
        solved = await policy.answer(task, desk)
    except AskFailed as e:
        return _outcome(desk, answer=None, error=e.message)
    plan = solved.plan
    shape = {"num_subtasks": len(plan.subtasks), "width": plan.width, "depth": plan.depth} if plan else {}
    return _outcome(
        desk,
        answer=solved.text,
        subtask_models=solved.models,
        is_plan_fallback=solved.is_plan_fallback,
        **shape,
    )


def _outcome(desk: Desk, **fields: object) -> EvalOutcome:
    base = {
        "calls": tuple(desk.calls),
        "is_cost_known": desk.is_cost_known,
        "latency_s": round(desk.elapsed_s, 6),
    }
    return EvalOutcome.model_validate({**base, **fields})


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one message."""
    return (Message(role="user", content=text),)
