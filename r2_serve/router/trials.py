"""Candidates on trial in one router process: who answers, the shadows, and the guard that ends a trial.

A shadow starts once the client's query has ended. It has a pipeline of its own: no client's purse, no
session, no cooldown and no forecast of a client's query learns of it. It shares the models themselves, so it
takes their time and the rate limits of providers; `max_shadows` and the budget bound that. What goes wrong in
it is in its trace, and reaches no client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from r2_serve.calls.budget import Purse
from r2_serve.calls.pool import PoolMember
from r2_serve.config import RolloutConfig, RoutingConfig
from r2_serve.errors import QuotaExceeded, R2Error, places
from r2_serve.router.allocator import Allocator
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.guard import Guard
from r2_serve.router.pipeline import Pipeline
from r2_serve.router.rollout import is_shadowed, note_of, shadow_of
from r2_serve.types import Arm, Query, Trace

log = logging.getLogger(__name__)
PurseFor = Callable[[str, RolloutConfig], Purse]
"""The purse of a candidate's shadows, by virtual model."""


class ShadowPurse:
    """The budget of the shadows of one candidate, in the memory of this process."""

    def __init__(self, budget_usd: Decimal) -> None:
        self.budget_usd = budget_usd
        self._spent_usd, self._held_usd = Decimal(0), Decimal(0)

    def left_usd(self) -> Decimal:
        return self.budget_usd - self.spent_usd() - self._held_usd

    def spent_usd(self) -> Decimal:
        """What the shadows have cost."""
        return self._spent_usd

    def spend(self, usd: Decimal) -> None:
        """Shadows have cost `usd` more."""
        self._spent_usd += usd

    def hold(self, usd: Decimal) -> None:
        self._held_usd += usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self._held_usd -= held_usd
        if spent_usd:
            self.spend(spent_usd)

    def refusal(self) -> QuotaExceeded:
        return QuotaExceeded(f"the shadows have a budget of {self.budget_usd:f} USD, and too little is left")


def in_memory(model: str, rollout: RolloutConfig) -> Purse:
    return ShadowPurse(rollout.budget_usd)


@dataclass
class Trials:
    """The trials of one router process."""

    shadows: Pipeline
    """Answers shadows; its routing is that of the router."""
    purse_for: PurseFor = in_memory
    guard: Guard = field(default_factory=Guard)
    skipped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Shadows that were left out, by virtual model, candidate and reason (`busy`, `budget`)."""
    _purses: dict[tuple[str, str], Purse] = field(default_factory=dict, repr=False)
    _running: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    def route_by(self, routing: RoutingConfig) -> None:
        """Use `routing` for the queries to come."""
        self.shadows.route_by(routing)

    def assigned(self, query: Query) -> Query:
        """The query with its part in the trial of its virtual model, if there is one."""
        rollout = self._trial_of(query.model)
        note = note_of(query, rollout) if rollout else None
        return query.model_copy(update={"rollout": note}) if note else query

    def follow(self, query: Query) -> None:
        """The client's query has ended: the candidate may answer it too."""
        rollout, note = self._trial_of(query.model), query.rollout
        if rollout is None or note is None or note.arm != "incumbent" or note.candidate != rollout.candidate:
            return
        if not is_shadowed(query, rollout):
            return
        purse = self._purse(query.model, rollout)
        left_usd = purse.left_usd()
        reason = "busy" if len(self._running) >= rollout.max_shadows else None
        reason = "budget" if left_usd is not None and left_usd <= 0 else reason
        if reason is not None:
            self.skipped[query.model, rollout.candidate, reason] += 1
            return
        work = self._answer(shadow_of(query, note, rollout.shadow), purse)
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def idle(self) -> None:
        """Returns when no shadow runs."""
        while self._running:
            await asyncio.wait(self._running)

    def observe(self, trace: Trace) -> None:
        """A sink of all traces."""
        rollout = self.shadows.routing.rollouts.get(trace.model)
        if rollout is not None:
            self.guard.observe(trace, rollout)

    def rate(self, model: str, candidate: str | None, arm: Arm | None, score: float) -> None:
        """A client gave a score to an answer of a trial."""
        rollout = self.shadows.routing.rollouts.get(model)
        if rollout is not None and arm is not None and candidate == rollout.candidate:
            self.guard.rate(model, rollout.candidate, arm, score, rollout)

    def _trial_of(self, model: str) -> RolloutConfig | None:
        rollout = self.shadows.routing.rollouts.get(model)
        is_on = rollout is not None and (model, rollout.candidate) not in self.guard.stopped
        return rollout if is_on else None

    def _purse(self, model: str, rollout: RolloutConfig) -> Purse:
        """The purse of the candidate; one with another budget replaces it."""
        place = model, f"{rollout.candidate}/{rollout.budget_usd}"
        if place not in self._purses:
            self._purses[place] = self.purse_for(model, rollout)
        return self._purses[place]

    async def _answer(self, query: Query, purse: Purse) -> None:
        if (rollout := self._trial_of(query.model)) is None or rollout.candidate != _candidate(query):
            return  # it was withdrawn before it began
        try:
            await self.shadows.answer(query, None, purse)
        except R2Error:
            return  # its trace has the reason
        except Exception as e:  # noqa: BLE001  nothing that a shadow does may disturb the router
            log.error("shadow %s: unforeseen %s at %s", query.request_id, type(e).__name__, places(e))


def _candidate(query: Query) -> str | None:
    return query.rollout.candidate if query.rollout else None


def apart(pipeline: Pipeline) -> Pipeline:
    """A pipeline over the same models that shares nothing else: its failures rest no model for clients."""
    pool = {name: PoolMember(member.config, member.engine) for name, member in pipeline.pool.items()}
    return Pipeline(
        pool, pipeline.routing, Decomposer(pool), Allocator(pool), pipeline.sinks, pipeline.replicas
    )
