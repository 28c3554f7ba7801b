"""What the stages of one query share, and what its trace will say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from r2_serve.calls.caller import Caller
from r2_serve.calls.ledger import Ledger, total_cost_usd
from r2_serve.config import LimitsConfig, VirtualModelConfig
from r2_serve.prompts.conversation import instructions_of
from r2_serve.router.allocator import Allocates
from r2_serve.router.decomposer import Decomposes
from r2_serve.router.demand import Demand
from r2_serve.router.events import EventBus
from r2_serve.router.gates import QueryGates
from r2_serve.router.past import call_told
from r2_serve.router.policies import LEARNED
from r2_serve.router.sessions import Sessions
from r2_serve.router.spill import Replicas
from r2_serve.types import (
    Allocation,
    CallRecord,
    Decision,
    Event,
    Message,
    OnDelta,
    Plan,
    Query,
    Savings,
    SessionNote,
    Subtask,
    SubtaskResult,
    Trace,
    text_hash,
)
from r2_serve.types.events import EventKind

WORKER_STAGES = ("execute", "pass_through")
"""Stages whose calls work on the query itself; the others are the router's own calls."""


@dataclass
class TraceDraft:
    """The fields of a trace that the stages of a query fill in as they end."""

    policy: str = LEARNED
    shares: dict[str, float] = field(default_factory=dict)
    propensities: tuple[float, ...] = ()
    savings: Savings | None = None
    decision: Decision | None = None
    plan: Plan | None = None
    num_plan_samples: int = 0
    num_plan_rejected: int = 0
    plan_fallback: str | None = None
    allocation: Allocation | None = None
    allocation_fallback: str | None = None
    session: SessionNote | None = None
    results: tuple[SubtaskResult, ...] = ()


@dataclass(frozen=True)
class QueryContext:
    """One query, the services that work on it, and the draft of its trace."""

    query: Query
    text: str
    """The client's messages as one text: what is decomposed, and what the trace shows."""
    limits: LimitsConfig
    """The operator's limits, lowered where the query asks for less."""
    decomposer: Decomposes
    allocator: Allocates
    caller: Caller
    demand: Demand
    replicas: Replicas
    sessions: Sessions
    gates: QueryGates
    on_delta: OnDelta | None
    """Takes the pieces of the final answer as they come."""
    events: EventBus = field(default_factory=EventBus)
    """Takes what happens to the query to those who watch it."""
    draft: TraceDraft = field(default_factory=TraceDraft)
    began_s: float = field(default_factory=time.time)
    """Unix time at which the query came."""

    @property
    def ledger(self) -> Ledger:
        return self.caller.ledger

    def tell(self, kind: EventKind, **fields: object) -> None:
        """Publishes an event, if somebody reads them."""
        if self.events.has_readers:
            query, at_s = self.query, self.ledger.elapsed_s()
            known = {"request_id": query.request_id, "model": query.model, "client": query.client}
            self.events.publish(Event.model_validate({"kind": kind, **known, "at_s": at_s, **fields}))

    def tell_decision(self) -> None:
        decision = self.draft.decision
        if decision is not None:
            what = {"action": decision.action, "reason": decision.reason, "direct_usd": decision.direct_usd}
            self.tell("decided", **what)

    def tell_call(self, call: CallRecord) -> None:
        if self.events.has_readers:
            self.tell("called", subtask=call.subtask, called=call_told(call))

    def trace(self, *, answer: str | None = None, error: str | None = None) -> Trace:
        """The trace of the query as it stands now."""
        calls, draft, duration_s = tuple(self.ledger.calls), self.draft, self.ledger.elapsed_s()
        worker_calls = [call for call in calls if call.stage in WORKER_STAGES]
        return Trace(
            request_id=self.query.request_id,
            model=self.query.model,
            query=self.text,
            query_hash=text_hash(self.text),
            reply_id=self.query.reply_id,
            client=self.query.client,
            plan=draft.plan,
            allocation=draft.allocation,
            results=draft.results,
            calls=calls,
            answer=answer,
            error=error,
            plan_fallback=draft.plan_fallback,
            allocation_fallback=draft.allocation_fallback,
            session=draft.session,
            context=self.query.context,
            policy=draft.policy,
            shares=draft.shares,
            propensities=draft.propensities,
            decision=draft.decision,
            num_plan_samples=draft.num_plan_samples,
            num_plan_rejected=draft.num_plan_rejected,
            began_s=self.began_s,
            deadline_s=self.limits.deadline_s,
            duration_s=duration_s,
            overhead_s=max(0.0, duration_s - _covered_s(worker_calls)),
            cost_usd=total_cost_usd(calls),
            worker_cost_usd=total_cost_usd(worker_calls),
            savings=draft.savings,
            rollout=self.query.rollout,
        )


def read_by(
    subtask: Subtask, plan: Plan, messages: Sequence[Message], virtual: VirtualModelConfig
) -> Sequence[Message]:
    """What a step reads of the client's conversation: all of it, or its system messages alone."""
    is_needed = subtask.needs_query or (virtual.context == "needed" and subtask.id == plan.final_id)
    return messages if virtual.context == "full" or is_needed else instructions_of(messages)


def lowered(limits: LimitsConfig, query: Query) -> LimitsConfig:
    """`limits`, with the lower value where the query names one too."""
    caps = [cap for cap in (limits.max_cost_usd, query.max_cost_usd) if cap is not None]
    lower = {
        "deadline_s": min(limits.deadline_s, query.deadline_s or limits.deadline_s),
        "max_subtasks": min(limits.max_subtasks, query.max_subtasks or limits.max_subtasks),
        "max_cost_usd": min(caps, default=None),
    }
    return limits.model_copy(update=lower)


def _covered_s(calls: Iterable[CallRecord]) -> float:
    """Seconds during which at least one of `calls` was in progress."""
    total_s, reached_s = 0.0, 0.0
    for start_s, end_s in sorted((call.start_s, call.end_s) for call in calls):
        total_s += max(0.0, end_s - max(start_s, reached_s))
        reached_s = max(reached_s, end_s)
    return total_s
