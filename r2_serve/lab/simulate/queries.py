"""What the router does with a query, as a state machine: admission, plan, allocation, the DAG as a ready queue, the end.

The same steps as `router.pipeline`, `router.executor` and `calls.caller` take, with their limits, timeouts, retries and
fallbacks. What a model would have answered is known from the workload; only when it answers is simulated.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from r2_serve.calls.retry_rules import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from r2_serve.lab.simulate.calls import AT_REPLICA, Call
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.sizes import Sizes

if TYPE_CHECKING:
    from r2_serve.lab.simulate.router import Router

ROUTER, DECOMPOSE, PLAN, ALLOCATE, PICK = -1, -2, -3, -4, -5
"""Marks of calls that are no subtask's; a subtask's is its position in the plan."""
OK, OVERLOADED, SUBTASK_FAILED, DEADLINE, UNAVAILABLE = 200, 429, 502, 504, 503
PLANNING, PICKING, WORKING = range(3)


class Query:
    """One query and its calls."""

    __slots__ = (
        "begun_s",
        "calls",
        "cost_usd",
        "first_token_s",
        "free",
        "index",
        "intended_s",
        "models",
        "num_left",
        "num_plans",
        "place",
        "prompt_tokens",
        "ready",
        "reply_tokens",
        "router",
        "sizes",
        "stage",
        "stage_call",
        "stage_s",
        "waiting",
    )

    def __init__(self, router: Router, index: int, intended_s: float, sizes: Sizes) -> None:
        self.router, self.index, self.intended_s, self.sizes = router, index, intended_s, sizes
        self.place = Call(self, ROUTER, 0.0, 0.0, intended_s)
        """At the router."""
        self.calls: set[Call] = set()
        """Under way, to models."""
        self.cost_usd = self.prompt_tokens = self.reply_tokens = self.begun_s = self.stage_s = 0.0
        self.first_token_s: float | None = None
        self.models = sizes.form.models
        self.stage = PLANNING
        self.stage_call: Call | None = None
        """At the decomposer or the allocator."""
        self.num_left = self.num_plans = 0
        self.waiting: list[int] = []
        self.ready: list[int] = []
        self.free = 0

    # -- what calls report ----------------------------------------------------------------------------------------

    def call_admitted(self, call: Call) -> None:
        if call.position == ROUTER:
            self._begin()
        elif call.position == DECOMPOSE:
            assert self.router.virtual is not None
            config = self.router.virtual.decomposer
            self.num_left = config.num_samples
            if self.router.plans is not None:
                self.router.plans.planning(self, config.model, config.num_samples)
            for _ in range(config.num_samples):
                self._ask(
                    PLAN,
                    config.model,
                    self.sizes.plan_prompt,
                    min(self.sizes.plan_reply, config.max_tokens),
                    self.router.stage_hop_s,
                )
        else:
            assert self.router.virtual is not None
            picker = self.router.virtual.allocator
            if self.router.plans is not None:
                self.router.plans.planning(self, picker.model, 1)
            self._ask(
                PICK,
                picker.model,
                self.sizes.pick_prompt,
                min(self.sizes.pick_reply, picker.max_tokens),
                self.router.stage_hop_s,
            )

    def call_done(self, call: Call) -> None:
        self.calls.remove(call)
        name, plans = call.chain[call.rank], self.router.plans
        if plans is not None:
            plans.answered(self, name, call)
        model = self.router.models[name]
        self.cost_usd += (
            call.prompt_tokens * model.usd_per_token_in + call.reply_tokens * model.usd_per_token_out
        )
        self.prompt_tokens += call.prompt_tokens
        self.reply_tokens += call.reply_tokens
        position = call.position
        if position >= 0:
            self._subtask_done(call, position)
        elif position == PLAN:
            self.num_plans += 1
            self._sampled()
        else:
            self._picked()

    def call_failed(self, call: Call, reason: str, retry_after_s: float | None) -> None:
        if call.position == ROUTER:
            self._forget()
            self.router.outcomes.ended(
                self, OVERLOADED if reason == "overloaded" else UNAVAILABLE, self.router.clock.now
            )
        elif call.position in (DECOMPOSE, ALLOCATE):
            self.stage_call = None
            self._stage_failed(call.position)
        else:
            self.calls.discard(call)
            self._again(call, reason, retry_after_s)

    # -- stages ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        router = self.router
        self.begun_s = router.clock.now
        router.active[self] = None
        if router.plans is not None:
            router.plans.opened(self)
        if router.virtual is None:
            self._execute()
        else:
            self._enter(PLANNING, router.decomposer, DECOMPOSE)

    def _enter(self, stage: int, deployment: Deployment, position: int) -> None:
        self.stage, self.stage_s = stage, self.router.clock.now
        self.stage_call = Call(self, position, 0.0, 0.0, self.stage_s)
        deployment.submit(self.stage_call)

    def _leave(self, deployment: Deployment) -> None:
        if self.router.plans is not None:
            self.router.plans.planned(self)
        if self.stage_call is not None:
            call, self.stage_call = self.stage_call, None
            if call.state == AT_REPLICA:
                deployment.release(call)
            else:
                deployment.cancel(call)

    def _sampled(self) -> None:
        """One more plan, or one that cannot be had."""
        self.num_left -= 1
        if self.num_left == 0:
            if self.num_plans:
                self._planned()
            else:
                self._stage_failed(PLAN)

    def _planned(self) -> None:
        router, virtual = self.router, self.router.virtual
        assert virtual is not None
        self._leave(router.decomposer)
        if virtual.policy == "learned":
            self._enter(PICKING, router.allocator, ALLOCATE)
        else:
            self._execute()

    def _picked(self) -> None:
        self._leave(self.router.allocator)
        self._execute()

    def _stage_failed(self, position: int) -> None:
        """As the router does where no plan or no allocation can be had: one step, or everything to the fallback model."""
        virtual = self.router.virtual
        assert virtual is not None
        if position in (DECOMPOSE, PLAN):
            self._leave(self.router.decomposer)
            self.sizes = self.sizes.in_one_step()
            self.models = (virtual.fallback_model,)
        else:
            self._leave(self.router.allocator)
            self.models = (virtual.fallback_model,) * len(self.models)
        self._execute()

    def _execute(self) -> None:
        edges = self.sizes.form.edges
        self.stage = WORKING
        self.waiting = list(edges.num_waiting)
        self.num_left = len(self.waiting)
        self.free = self.router.limits.max_parallel
        self.ready = list(edges.roots)
        if self.router.plans is not None:
            self.router.plans.allocated(self)
        self._start_ready()

    def _start_ready(self) -> None:
        """In the order of the executor: the longest chain first."""
        order, sizes, plans = self.sizes.form.edges.order, self.sizes, self.router.plans
        while self.ready and self.free > 0:
            position = order[heapq.heappop(self.ready)]
            self.free -= 1
            if plans is not None:
                plans.started(self, position)
            model = self.models[position]
            if self.router.spill is not None:
                model = self.router.with_room(model, sizes.prompts[position], sizes.replies[position])
            self._ask(position, model, sizes.prompts[position], sizes.replies[position])

    def _subtask_done(self, call: Call, position: int) -> None:
        edges = self.sizes.form.edges
        self.free += 1
        self.num_left -= 1
        if self.router.plans is not None:
            self.router.plans.finished(self, position)
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
        self._leave(router.decomposer if self.stage == PLANNING else router.allocator)
        del router.active[self]
        router.router.release(self.place)
        self._forget()
        if router.plans is not None:
            router.plans.ended(self)
        router.outcomes.ended(self, status, router.clock.now)

    def _cancel_calls(self) -> None:
        for call in self.calls:
            if call.target is not None:  # else it waits for its next try
                call.target.cancel(call)
        self.calls.clear()

    def _forget(self) -> None:
        """The place that holds this query: a cycle, which would stay in memory."""
        del self.place

    # -- calls ----------------------------------------------------------------------------------------------------

    def _ask(
        self, position: int, model: str, prompt_tokens: float, reply_tokens: float, delay_s: float = 0.0
    ) -> None:
        pooled = self.router.models[model]
        call = Call(self, position, prompt_tokens, reply_tokens, self.router.clock.now)
        call.chain, call.delay_s = pooled.chain, delay_s
        self.calls.add(call)
        pooled.target.submit(call)

    def _again(self, call: Call, reason: str, retry_after_s: float | None) -> None:
        """The same model after a while, or the next of its fallbacks, or the end of it: as `r2_serve.calls.caller` does."""
        router = self.router
        asks_too_long = (retry_after_s or 0.0) > LONGEST_BACKOFF_S
        is_given_up = (
            reason in ("timeout", "resting") or asks_too_long or call.attempt >= router.limits.max_attempts
        )
        again = Call(self, call.position, call.prompt_tokens, call.reply_tokens, router.clock.now)
        again.chain = call.chain
        again.passed_over = call.rank if reason == "resting" and call.passed_over < 0 else call.passed_over
        again.rank, again.attempt = (call.rank + 1, 1) if is_given_up else (call.rank, call.attempt + 1)
        if again.rank >= len(call.chain):
            if again.passed_over < 0 or call.is_last_resort:
                return self._given_up(call)
            again.rank, again.is_last_resort = again.passed_over, True
        backoff_s = min(FIRST_BACKOFF_S * 2 ** (call.attempt - 1), LONGEST_BACKOFF_S) * router.draw.random()
        delay_s = 0.0 if is_given_up else backoff_s if retry_after_s is None else retry_after_s
        self.calls.add(again)
        router.clock.after(delay_s, self._resubmit, again)
        return None

    def _resubmit(self, call: Call) -> None:
        if call in self.calls:
            call.start_s = self.router.clock.now
            self.router.models[call.chain[call.rank]].target.submit(call)

    def _given_up(self, call: Call) -> None:
        if call.position >= 0:
            self._end(SUBTASK_FAILED)
        elif call.position == PICK:
            self._stage_failed(PICK)
        else:
            self._sampled()

    def check_timeouts(self, now_s: float) -> None:
        router = self.router
        if now_s - self.begun_s >= router.limits.deadline_s:
            return self._end(DEADLINE)
        if self.stage != WORKING and router.virtual is not None:
            section = router.virtual.decomposer if self.stage == PLANNING else router.virtual.allocator
            if now_s - self.stage_s >= section.timeout_s:
                return self._stage_timed_out()
        for call in [
            call
            for call in self.calls
            if now_s - call.start_s >= router.models[call.chain[call.rank]].config.timeout_s
        ]:
            if call.target is not None:
                call.target.cancel(call)
            self.calls.discard(call)
            self._again(call, "timeout", None)
            if self not in router.active:
                break
        return None

    def _stage_timed_out(self) -> None:
        self._cancel_calls()
        if self.stage == PLANNING and self.num_plans:
            self._planned()
        else:
            self._stage_failed(PLAN if self.stage == PLANNING else PICK)
