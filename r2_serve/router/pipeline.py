"""A query in, a routed answer out: decompose, allocate, execute, synthesize. No Ray, no torch.

`Pipeline.answer` is the whole of it. Decomposer and allocator come as protocols, so that the same code runs them
in the process (tests, batch evaluation) and as Ray Serve deployments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from r2_serve.calls.caller import Caller, CallResult, CallSpec, OnDelta, Pool
from r2_serve.calls.ledger import Budget, Ledger, Purse, format_chars, total_cost_usd
from r2_serve.config import DecomposerConfig, LimitsConfig, RoutingConfig, VirtualModelConfig
from r2_serve.errors import (
    BudgetExceeded,
    CodecError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    R2Error,
    SubtaskFailed,
)
from r2_serve.prompts import Codec
from r2_serve.prompts.instruct import conversation_text
from r2_serve.router.allocator import AllocationResult, AllocationTask, everything_to, fixed_allocation
from r2_serve.router.decomposer import Decomposition, check_plan
from r2_serve.router.demand import Demand
from r2_serve.router.executor import execute
from r2_serve.router.spill import Replicas, no_replicas, with_room
from r2_serve.router.synthesis import Final, cut_to_chars, synthesize
from r2_serve.types import (
    Allocation,
    Answer,
    Message,
    Plan,
    Query,
    Sampling,
    Subtask,
    SubtaskResult,
    Trace,
    substituted_chars,
)

log = logging.getLogger(__name__)
Sink = Callable[[Trace], None]
"""Takes the trace of a finished query."""
_WHOLE = Plan.single("the whole query")


class Decomposes(Protocol):
    """`r2_serve.router.decomposer.Decomposer`, here or in another process. Its calls are in the ledger when it returns or raises."""

    async def decompose(
        self, query: str, config: DecomposerConfig, limits: LimitsConfig, ledger: Ledger
    ) -> Decomposition: ...


class Allocates(Protocol):
    """`r2_serve.router.allocator.Allocator`, likewise."""

    async def allocate(self, task: AllocationTask, ledger: Ledger) -> AllocationResult: ...


@dataclass
class Pipeline:
    """Answers queries. `routing` may be replaced at any time: a query keeps the one it started with."""

    pool: Pool
    routing: RoutingConfig
    decomposer: Decomposes
    allocator: Allocates
    sinks: Sequence[Sink] = ()
    """Each gets the trace of every query, answered or not."""
    replicas: Replicas = no_replicas
    """Where subtasks may spill: how many replicas there are."""
    demand: Demand = field(default_factory=Demand)
    """Told of every plan and call, so that models can be scaled before the calls come."""

    async def answer(
        self, query: Query, on_delta: OnDelta | None = None, purse: Purse | None = None
    ) -> Answer:
        """The answer to `query`; pieces of its text go to `on_delta` as they come, where the final step can stream. `purse` pays.

        Raises: R2Error. Cancelling stops every call made for the query.
        """
        routing = self.routing
        if query.model in routing.virtual_models:
            work: _Work = _Routed(
                self, query, routing.limits, on_delta, purse, virtual=routing.virtual_models[query.model]
            )
        elif query.model in self.pool:
            work = _PassThrough(self, query, routing.limits, on_delta, purse)
        else:
            names = [*routing.virtual_models, *self.pool]
            raise ModelNotFound(f"no model {query.model!r}; choose one of {names}")
        return await work.run()


@dataclass
class _Work:
    """State of one query, and what its trace will say."""

    pipeline: Pipeline
    query: Query
    limits: LimitsConfig
    on_delta: OnDelta | None
    purse: Purse | None = None
    trace: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        query, limits = self.query, self.limits
        caps = [cap for cap in (limits.max_cost_usd, query.max_cost_usd) if cap is not None]
        budget = Budget(limits.max_calls, limits.max_total_tokens, min(caps, default=None))
        self.ledger = Ledger(budget, purse=self.purse, on_call=self.pipeline.demand.learn)
        self.caller = Caller(self.pipeline.pool, self.ledger, limits)
        self.deadline_s = min(limits.deadline_s, query.deadline_s or limits.deadline_s)
        self.text = conversation_text(query.messages)

    async def run(self) -> Answer:
        try:
            async with asyncio.timeout(self.deadline_s) as scope:
                self._check_query()
                with self._announced():
                    final = await self.steps()
        except TimeoutError as e:
            if not scope.expired():
                self._publish(error=f"TimeoutError: {e}")
                raise
            self._fail(DeadlineExceeded(f"no answer within the deadline of {self.deadline_s:g} s"), e)
        except asyncio.CancelledError:
            self._publish(error="cancelled by the client")
            raise
        except R2Error as e:
            self._fail(e, e)
        except Exception as e:  # a fault of ours: it goes up as it is, but not without its trace
            self._publish(error=f"{type(e).__name__}: {e}")
            raise
        return self._answered(final)

    @contextmanager
    def _announced(self) -> Iterator[None]:
        """To whom it concerns what will be called; where nothing but a plan is asked for, no worker will be."""
        if self.query.is_plan_only:
            yield
            return
        with self.pipeline.demand.query(self.query.model) as self.expected:
            yield

    async def steps(self) -> Final:
        raise NotImplementedError

    def _check_query(self) -> None:
        limits, num_messages, max_tokens = (
            self.limits,
            len(self.query.messages),
            self.query.sampling.max_tokens,
        )
        if num_messages > limits.max_messages:
            raise InvalidRequest(
                f"got {num_messages} messages; the limit is {limits.max_messages}", "messages"
            )
        num_chars, num_more = len(self.text), format_chars(self.query.sampling.response_format)
        if num_chars > limits.max_query_chars:
            raise InvalidRequest(
                f"the messages have {num_chars} characters; the limit is {limits.max_query_chars}", "messages"
            )
        if num_chars + num_more > limits.max_query_chars:
            text = f"response_format has {num_more} characters, the messages {num_chars}; the limit of both is {limits.max_query_chars}"
            raise InvalidRequest(text, "response_format")
        if max_tokens is not None and max_tokens > limits.max_tokens:
            raise InvalidRequest(
                f"got max_tokens {max_tokens}; the limit is {limits.max_tokens}", "max_tokens"
            )

    def _fail(self, error: R2Error, cause: BaseException) -> NoReturn:
        self._publish(error=f"{type(error).__name__}: {error.message}")
        raise error from (cause if cause is not error else cause.__cause__)

    def _answered(self, final: Final) -> Answer:
        trace = self._publish(answer=final.text)
        workers = [
            call.model
            for call in trace.calls
            if call.stage in ("execute", "pass_through") and call.outcome == "ok"
        ]
        return Answer(
            text=final.text,
            finish_reason=final.finish_reason,
            confidence=final.confidence,
            usage=self.ledger.usage,
            cost_usd=trace.cost_usd,
            models=tuple(dict.fromkeys(workers)),
            num_subtasks=len(trace.results),
            overhead_s=trace.overhead_s,
            trace=trace,
        )

    def _publish(self, **outcome: object) -> Trace:
        calls = tuple(self.ledger.calls)
        duration_s = self.ledger.elapsed_s()
        busy_s = _covered_s([(c.start_s, c.end_s) for c in calls if c.stage in ("execute", "pass_through")])
        fields = {
            "request_id": self.query.request_id,
            "model": self.query.model,
            "query": self.text,
            "calls": calls,
            "duration_s": duration_s,
            "overhead_s": max(0.0, duration_s - busy_s),
            "cost_usd": total_cost_usd(calls),
            "worker_cost_usd": total_cost_usd(calls, stage="execute")
            + total_cost_usd(calls, stage="pass_through"),
            **self.trace,
            **outcome,
        }
        trace = Trace.model_validate(fields)
        for sink in self.pipeline.sinks:
            sink(trace)
        return trace


@dataclass
class _PassThrough(_Work):
    """A pool model asked by name: no plan."""

    async def steps(self) -> Final:
        spec = CallSpec(
            render=lambda codec: codec.render_query(self.query.messages),
            stage="pass_through",
            sampling=self.query.sampling,
            on_delta=self.on_delta,
        )
        self.trace["policy"] = "pass_through"
        self.expected.plan(_WHOLE, everything_to(self.query.model, _WHOLE))
        with self.expected.calling(1, self.query.model):
            return Final.of(await self.caller.call(self.query.model, spec))


@dataclass(kw_only=True)
class _Routed(_Work):
    """A virtual model: the four stages."""

    virtual: VirtualModelConfig
    is_one_step: bool = False
    """No plan could be made, so the whole conversation goes to one model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query.max_subtasks is not None:
            self.limits = self.limits.model_copy(
                update={"max_subtasks": min(self.limits.max_subtasks, self.query.max_subtasks)}
            )

    async def steps(self) -> Final:
        policy = self.query.policy or self.virtual.policy
        fixed_allocation(policy, Plan.single("checked before any call"), self.virtual.pool, seed="")
        self._check_pins()
        plan = await self._decompose()
        self.trace.update(plan=plan, policy=policy)
        if self.query.is_plan_only:
            return Final(plan.model_dump_json(exclude_none=True), "stop")
        if plan.answer is not None and self.query.sampling.response_format is not None:
            raise InvalidRequest(
                "a template makes this plan's answer, and no model that could be held to a format",
                "response_format",
            )
        allocation = await self._allocate(plan, policy)
        self.trace["allocation"] = allocation
        self.expected.plan(plan, allocation)
        results = await self._execute(plan, allocation)
        if plan.answer is not None:
            self._check_size("the answer", plan.answer, {i: done.call.answer for i, done in results.items()})
        return synthesize(plan, {i: done.call for i, done in results.items()}, self.query.sampling)

    async def _decompose(self) -> Plan:
        if self.query.plan is not None:
            self._check_own_plan(self.query.plan)
            return self.query.plan
        decomposer = self.virtual.decomposer
        with self.pipeline.demand.calling(decomposer.model, num_calls=decomposer.num_samples):
            made = await self.pipeline.decomposer.decompose(self.text, decomposer, self.limits, self.ledger)
        self.is_one_step = made.fallback is not None
        self.trace.update(
            num_plan_samples=made.num_samples,
            num_plan_rejected=made.num_rejected,
            plan_fallback=made.fallback,
        )
        return made.plan

    async def _allocate(self, plan: Plan, policy: str) -> Allocation:
        virtual, pins = self.virtual, self.query.pinned
        fixed = fixed_allocation(policy, plan, virtual.pool, seed=self.query.request_id)
        if fixed is None and self.is_one_step:
            fixed = everything_to(virtual.fallback_model, plan)
        if fixed is None and len(pins) < len(plan.subtasks):
            fixed = await self._ask_allocator(plan)
        chosen = fixed.models if fixed is not None else (virtual.fallback_model,) * len(plan.subtasks)
        return Allocation(models=tuple(pins.get(i, model) for i, model in enumerate(chosen, 1)))

    async def _ask_allocator(self, plan: Plan) -> Allocation:
        virtual = self.virtual
        task = AllocationTask(
            query=self.text,
            plan=plan,
            config=virtual.allocator,
            names=virtual.pool,
            fallback_model=virtual.fallback_model,
            limits=self.limits,
        )
        with self.pipeline.demand.calling(task.config.model):
            made = await self.pipeline.allocator.allocate(task, self.ledger)
        self.trace["allocation_fallback"] = made.fallback
        return made.allocation

    async def _execute(self, plan: Plan, allocation: Allocation) -> dict[int, _Done]:
        done: dict[int, _Done] = {}
        began_s = self.ledger.elapsed_s()

        async def run(subtask: Subtask, inputs: dict[int, _Done]) -> _Done:
            ready_s = max((needed.result.end_s for needed in inputs.values()), default=began_s)
            done[subtask.id] = await self._run_subtask(
                plan, subtask, allocation.models[subtask.id - 1], inputs, ready_s
            )
            return done[subtask.id]

        try:
            return await execute(plan, run, max_parallel=self.limits.max_parallel)
        finally:
            self.trace["results"] = tuple(done[i].result for i in sorted(done))

    async def _run_subtask(
        self, plan: Plan, subtask: Subtask, model: str, inputs: dict[int, _Done], ready_s: float
    ) -> _Done:
        start_s = self.ledger.elapsed_s()
        answers = {
            i: cut_to_chars(done.call.answer, self.limits.max_answer_chars) for i, done in inputs.items()
        }
        self._check_size(f"the prompt of subtask {subtask.id}", subtask.text, answers)
        spec = CallSpec(
            render=lambda codec: self._render(codec, plan, subtask, answers),
            stage="execute",
            subtask=subtask.id,
            sampling=self.query.sampling if subtask.id == plan.final_id else Sampling(temperature=0.0),
            on_delta=self.on_delta if subtask.id == plan.final_id else None,
        )
        model = self._with_room(model, spec)
        try:
            with self.expected.calling(subtask.id, model):
                call = await self.caller.call(model, spec)
        except EngineError as e:
            raise SubtaskFailed(
                f"subtask {subtask.id} failed on {model} and its fallbacks: {e.message}", subtask.id, model
            ) from e
        return _Done(call, self._result(subtask, call, ready_s, start_s))

    def _with_room(self, model: str, spec: CallSpec) -> str:
        """`model`, or where it has no room one that may stand in for it. A model pinned by the client stays."""
        spill, pipeline = self.virtual.spill, self.pipeline
        if spill is None or spec.subtask in self.query.pinned:
            return model
        names = self.virtual.pool
        return with_room(
            model,
            names,
            spec,
            pool=pipeline.pool,
            demand=pipeline.demand,
            replicas=pipeline.replicas,
            config=spill,
        )

    def _render(self, codec: Codec, plan: Plan, subtask: Subtask, answers: dict[int, str]) -> list[Message]:
        if self.is_one_step:
            return codec.render_query(self.query.messages)
        return codec.render_subtask(self.query.messages, plan, subtask, answers)

    def _result(self, subtask: Subtask, call: CallResult, ready_s: float, start_s: float) -> SubtaskResult:
        spent = total_cost_usd(c for c in self.ledger.calls if c.subtask == subtask.id)
        return SubtaskResult(
            id=subtask.id,
            model=call.model,
            answer=call.answer,
            usage=call.completion.usage,
            cost_usd=spent,
            num_attempts=call.num_attempts,
            ready_s=ready_s,
            start_s=start_s,
            end_s=self.ledger.elapsed_s(),
        )

    def _check_size(self, what: str, text: str, answers: dict[int, str]) -> None:
        """Raises: BudgetExceeded before repeated references make a text that nobody could read. Each answer once is never too long."""
        limit = max(self.limits.max_query_chars, len(text) + sum(map(len, answers.values())))
        if (num_chars := substituted_chars(text, answers)) > limit:
            raise BudgetExceeded(
                f"{what} would have {num_chars} characters; at most {limit} are allowed (limits.max_query_chars)"
            )

    def _check_own_plan(self, plan: Plan) -> None:
        try:
            check_plan(plan, self.limits)
        except CodecError as e:
            raise InvalidRequest(e.message, "r2.plan") from e

    def _check_pins(self) -> None:
        if self.query.pinned and self.query.plan is None:
            raise InvalidRequest(
                "models can be pinned to the subtasks of your own plan only: send r2.plan too", "r2.models"
            )
        ids = {subtask.id for subtask in self.query.plan.subtasks} if self.query.plan else set()
        for subtask_id, model in self.query.pinned.items():
            if subtask_id not in ids:
                raise InvalidRequest(
                    f"no subtask {subtask_id} in your plan; its ids are {sorted(ids)}",
                    f"r2.models.{subtask_id}",
                )
            if model not in self.virtual.pool:
                raise InvalidRequest(
                    f"{model!r} is not in the pool {list(self.virtual.pool)}", f"r2.models.{subtask_id}"
                )


@dataclass(frozen=True)
class _Done:
    """A subtask's call, and its line in the trace."""

    call: CallResult
    result: SubtaskResult


def _covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Total length of the union of `spans`."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
