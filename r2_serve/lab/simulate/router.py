"""The router's work on a query as a state machine: admission, plan, allocation, the DAG as a ready queue, the
end.

The steps are those of `router.pipeline`, `router.executor` and `calls.caller`, with their limits, timeouts,
retries and fallbacks. The workload says what a model answers; only the time of the answer is simulated. All
router replicas are taken together: their admission is that of one deployment, and their timeouts are checked
in one sweep.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from r2_serve.calls.retry_rules import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from r2_serve.config import AllocatorConfig, DecomposerConfig, VirtualModelConfig
from r2_serve.lab.simulate.calls import AT_REPLICA, SimulatedCall
from r2_serve.lab.simulate.choices import explored, whole_model
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.sizes import Sizes
from r2_serve.lab.simulate.system import System
from r2_serve.lab.simulate.whole import goes_whole

ROUTER, DECOMPOSE, PLAN, ALLOCATE, PICK = -1, -2, -3, -4, -5
"""Marks of calls that are not a subtask's; a subtask's mark is its position in the plan."""
WORKING = 0
"""Stage of a query whose plan is allocated; before, its stage is DECOMPOSE or ALLOCATE."""
OK, OVERLOADED, SUBTASK_FAILED, DEADLINE, UNAVAILABLE = 200, 429, 502, 504, 503


class QueryListener:
    """Hears what queries will ask for and what they have asked. This one ignores it."""

    def opened(self, query: SimulatedQuery) -> None:
        """The query was admitted."""

    def planning(self, query: SimulatedQuery, model: str, num_calls: int) -> None:
        """The planner or the picker is asked."""

    def planned(self, query: SimulatedQuery) -> None:
        """The planner or the picker has answered."""

    def allocated(self, query: SimulatedQuery) -> None:
        """The query's plan and models are known."""

    def started(self, query: SimulatedQuery, position: int) -> None:
        """A subtask has begun."""

    def answered(self, query: SimulatedQuery, model: str, call: SimulatedCall) -> None:
        """`model` has answered a call."""

    def finished(self, query: SimulatedQuery, position: int) -> None:
        """A subtask has its answer."""

    def ended(self, query: SimulatedQuery) -> None:
        """The query has ended, in any way."""


@dataclass
class SimulatedRouter:
    """All router replicas together, with the queries that are open."""

    system: System
    clock: Clock
    draw: random.Random
    on_end: Callable[[SimulatedQuery, int, float], None]
    """Is called with each query, its HTTP status and the time of its end in seconds."""
    listener: QueryListener = field(default_factory=QueryListener)
    active: dict[SimulatedQuery, None] = field(default_factory=dict)
    """Queries that are admitted and have not ended, oldest first."""

    def arrives(self, index: int, intended_s: float, sizes: Sizes) -> None:
        """Takes a query that was to be sent at `intended_s`."""
        self.system.router.submit(SimulatedQuery(self, index, intended_s, sizes).place)

    def check_timeouts(self) -> None:
        """Ends what has waited too long; to be called at intervals."""
        now, shortest_s = self.clock.now, self.system.shortest_timeout_s
        due = []  # a list of its own, since a check may end queries
        for query in self.active:
            if query.begun_s > now - shortest_s:
                break
            due.append(query)
        for query in due:
            query.check_timeouts(now)


@dataclass(slots=True, eq=False)
class SimulatedQuery:
    """One query and its calls."""

    router: SimulatedRouter
    index: int
    intended_s: float
    sizes: Sizes
    place: SimulatedCall = field(init=False)
    """The call that holds the query's place at the router."""
    calls: set[SimulatedCall] = field(default_factory=set)
    """Calls to models that are under way or wait for their next attempt."""
    cost_usd: float = 0.0
    prompt_tokens: float = 0.0
    reply_tokens: float = 0.0
    begun_s: float = 0.0
    stage_s: float = 0.0
    """Time at which the stage began."""
    first_token_s: float | None = None
    models: tuple[str, ...] = field(init=False)
    """Model of each subtask."""
    stage: int = DECOMPOSE
    stage_call: SimulatedCall | None = None
    """The call that holds the query's place at the decomposer or the allocator."""
    num_left: int = 0
    """Plans or subtasks that are still to come."""
    num_plans: int = 0
    waiting: list[int] = field(default_factory=list)
    """Number of inputs that each subtask still waits for."""
    ready: list[int] = field(default_factory=list)
    """A heap of ranks."""
    free: int = 0
    """Subtasks that may still start at once."""

    def __post_init__(self) -> None:
        self.place = SimulatedCall(self, ROUTER, 0.0, 0.0, self.intended_s)
        self.models = self.sizes.form.models

    # -- what calls report -------------------------------------------------------------------------------

    def call_admitted(self, call: SimulatedCall) -> None:
        sizes = self.sizes
        if call.position == ROUTER:
            self._begin()
        elif call.position == DECOMPOSE:
            planner = self._virtual.decomposer
            self.num_left = planner.num_at_once  # the first plan is good enough where they come in turn
            self._ask_stage_model(PLAN, planner, sizes.plan_prompt, sizes.plan_reply, self.num_left)
        else:
            self._ask_stage_model(PICK, self._virtual.allocator, sizes.pick_prompt, sizes.pick_reply, 1)

    def call_done(self, call: SimulatedCall) -> None:
        self.calls.remove(call)
        name = call.chain[call.rank]
        self.router.listener.answered(self, name, call)
        model = self.router.system.models[name]
        paid_in, paid_out = model.usd_per_token_in, model.usd_per_token_out
        self.cost_usd += call.prompt_tokens * paid_in + call.reply_tokens * paid_out
        self.prompt_tokens += call.prompt_tokens
        self.reply_tokens += call.reply_tokens
        if call.position >= 0:
            self._subtask_done(call, call.position)
        elif call.position == PLAN:
            self.num_plans += 1
            self._sampled()
        else:
            self._leave()
            self._allocated()

    def call_failed(self, call: SimulatedCall, reason: str, retry_after_s: float | None) -> None:
        if call.position == ROUTER:
            self._forget()
            status = OVERLOADED if reason == "overloaded" else UNAVAILABLE
            self.router.on_end(self, status, self.router.clock.now)
        elif call.position in (DECOMPOSE, ALLOCATE):
            self.stage_call = None
            self._stage_failed()
        else:
            self.calls.discard(call)
            self._again(call, reason, retry_after_s)

    # -- stages ------------------------------------------------------------------------------------------

    @property
    def _virtual(self) -> VirtualModelConfig:
        assert self.router.system.virtual is not None, "only queries to a virtual model have these stages"
        return self.router.system.virtual

    def _begin(self) -> None:
        router = self.router
        self.begun_s = router.clock.now
        router.active[self] = None
        router.listener.opened(self)
        virtual = router.system.virtual
        if virtual is None:
            self._execute()
        elif goes_whole(virtual, router.system.models, self.sizes):
            self.sizes = self.sizes.in_one_step()
            self.models = self._explored((whole_model(virtual),))
            self._execute()
        else:
            self._enter(DECOMPOSE, router.system.decomposer)

    def _enter(self, stage: int, deployment: Deployment) -> None:
        self.stage, self.stage_s = stage, self.router.clock.now
        self.stage_call = SimulatedCall(self, stage, 0.0, 0.0, self.stage_s)
        deployment.submit(self.stage_call)

    def _leave(self) -> None:
        self.router.listener.planned(self)
        if self.stage_call is not None:
            call, self.stage_call = self.stage_call, None
            system = self.router.system
            deployment = system.decomposer if self.stage == DECOMPOSE else system.allocator
            if call.state == AT_REPLICA:
                deployment.release(call)
            else:
                deployment.cancel(call)

    def _sampled(self) -> None:
        """Counts one more plan, or one that cannot be had."""
        self.num_left -= 1
        if self.num_left == 0:
            if self.num_plans:
                self._planned()
            else:
                self._stage_failed()

    def _planned(self) -> None:
        self._leave()
        if self._virtual.policy == "learned" and not self._virtual.decomposer.allocates:
            self._enter(ALLOCATE, self.router.system.allocator)
        else:
            self._allocated()

    def _allocated(self) -> None:
        if self._virtual.plan == "always":  # a plan that was made to save money keeps its models
            self.models = self._explored(self.models)
        self._execute()

    def _explored(self, models: tuple[str, ...]) -> tuple[str, ...]:
        return explored(self._virtual, self.router.system.models, models, self.router.draw)

    def _stage_failed(self) -> None:
        """Goes on as the router does: without a plan in one step, always with the fallback model."""
        self._leave()
        if self.stage == DECOMPOSE:
            self.sizes = self.sizes.in_one_step()
        self.models = (self._virtual.fallback_model,) * len(self.sizes.form.models)
        self._execute()

    def _execute(self) -> None:
        edges = self.sizes.form.edges
        self.stage = WORKING
        self.waiting, self.ready = list(edges.num_waiting), list(edges.roots)
        self.num_left, self.free = len(self.waiting), self.router.system.limits.max_parallel
        self.router.listener.allocated(self)
        self._start_ready()

    def _start_ready(self) -> None:
        """Starts subtasks in the order of the executor: the longest chain first."""
        order, sizes, system = self.sizes.form.edges.order, self.sizes, self.router.system
        while self.ready and self.free > 0:
            position = order[heapq.heappop(self.ready)]
            self.free -= 1
            self.router.listener.started(self, position)
            prompt, reply = sizes.prompts[position], sizes.replies[position]
            self._ask(position, system.with_room(self.models[position], prompt, reply), prompt, reply)

    def _subtask_done(self, call: SimulatedCall, position: int) -> None:
        edges = self.sizes.form.edges
        self.free += 1
        self.num_left -= 1
        self.router.listener.finished(self, position)
        if position == len(self.waiting) - 1:
            self.first_token_s = call.first_token_s
        if self.num_left == 0:
            return self._end(OK)
        for user in edges.users[position]:
            self.waiting[user] -= 1
            if self.waiting[user] == 0:
                heapq.heappush(self.ready, edges.rank[user])
        if self.ready:
            self._start_ready()
        return None

    def _end(self, status: int) -> None:
        router = self.router
        self._cancel_calls()
        self.ready = []
        self._leave()
        del router.active[self]
        router.system.router.release(self.place)
        self._forget()
        router.listener.ended(self)
        router.on_end(self, status, router.clock.now)

    def _cancel_calls(self) -> None:
        for call in self.calls:
            if call.target is not None:  # otherwise it waits for its next attempt
                call.target.cancel(call)
        self.calls.clear()

    def _forget(self) -> None:
        """Drops the place that holds this query: a cycle, which would stay in memory."""
        del self.place

    # -- calls -------------------------------------------------------------------------------------------

    def _ask_stage_model(
        self,
        position: int,
        config: DecomposerConfig | AllocatorConfig,
        prompt_tokens: float,
        reply_tokens: float,
        num_calls: int,
    ) -> None:
        self.router.listener.planning(self, config.model, num_calls)
        hop_s, reply_tokens = self.router.system.stage_hop_s, min(reply_tokens, config.max_tokens)
        for _ in range(num_calls):
            self._ask(position, config.model, prompt_tokens, reply_tokens, hop_s)

    def _ask(
        self, position: int, model: str, prompt_tokens: float, reply_tokens: float, delay_s: float = 0.0
    ) -> None:
        pooled, now = self.router.system.models[model], self.router.clock.now
        chain = pooled.chain if position < 0 else (*pooled.chain, *pooled.stand_ins)
        call = SimulatedCall(self, position, prompt_tokens, reply_tokens, now, chain, delay_s)
        self.calls.add(call)
        pooled.target.submit(call)

    def _again(self, call: SimulatedCall, reason: str, retry_after_s: float | None) -> None:
        """Asks the same model after a while, then its fallbacks, then gives up: as `calls.caller` does."""
        router = self.router
        asks_too_long = (retry_after_s or 0.0) > LONGEST_BACKOFF_S
        has_tried_enough = call.attempt >= router.system.limits.max_attempts
        is_given_up = reason in ("timeout", "resting") or asks_too_long or has_tried_enough
        again = SimulatedCall(
            self, call.position, call.prompt_tokens, call.reply_tokens, router.clock.now, call.chain
        )
        again.passed_over = call.rank if reason == "resting" and call.passed_over < 0 else call.passed_over
        again.rank, again.attempt = (call.rank + 1, 1) if is_given_up else (call.rank, call.attempt + 1)
        if again.rank >= len(call.chain):
            if again.passed_over < 0 or call.is_last_resort:
                return self._given_up(call)
            again.rank, again.is_last_resort = again.passed_over, True
        backoff_s = min(FIRST_BACKOFF_S * 2 ** (call.attempt - 1), LONGEST_BACKOFF_S) * router.draw.random()
        delay_s = 0.0 if is_given_up else backoff_s if retry_after_s is None else retry_after_s
        self.calls.add(again)
        return router.clock.after(delay_s, self._resubmit, again)

    def _resubmit(self, call: SimulatedCall) -> None:
        if call in self.calls:
            call.start_s = self.router.clock.now
            self.router.system.models[call.chain[call.rank]].target.submit(call)

    def _given_up(self, call: SimulatedCall) -> None:
        if call.position >= 0:
            self._end(SUBTASK_FAILED)
        elif call.position == PICK:
            self._stage_failed()
        else:
            self._sampled()

    def check_timeouts(self, now_s: float) -> None:
        """Ends the query, its stage or single calls if they have taken too long."""
        system = self.router.system
        if now_s - self.begun_s >= system.limits.deadline_s:
            return self._end(DEADLINE)
        if self.stage != WORKING:
            stage = self._virtual.decomposer if self.stage == DECOMPOSE else self._virtual.allocator
            if now_s - self.stage_s >= stage.timeout_s:
                return self._stage_timed_out()
        for call in list(self.calls):
            if now_s - call.start_s < system.models[call.chain[call.rank]].config.timeout_s:
                continue
            if call.target is not None:
                call.target.cancel(call)
            self.calls.discard(call)
            self._again(call, "timeout", None)
            if self not in self.router.active:
                break
        return None

    def _stage_timed_out(self) -> None:
        self._cancel_calls()
        if self.stage == DECOMPOSE and self.num_plans:
            self._planned()
        else:
            self._stage_failed()
