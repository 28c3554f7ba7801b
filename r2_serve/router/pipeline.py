"""The story of a query: decompose, allocate, execute, synthesize. No Ray, no torch.

`Pipeline.answer` is the whole of it: `route` for a virtual model, `pass_through` for a pool model. Decomposer
and allocator are protocols, so the same code runs them in this process and as Ray Serve deployments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from r2_serve.calls.budget import Budget, Purse
from r2_serve.calls.caller import Caller, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool
from r2_serve.config import AllocatorConfig, DecomposerConfig, RoutingConfig, VirtualModelConfig
from r2_serve.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    R2Error,
    error_text,
)
from r2_serve.prompts.conversation import conversation_text
from r2_serve.router.able import final_needs, readable_by, with_able_models
from r2_serve.router.allocator import Allocates, AllocationTask, everything_to
from r2_serve.router.checks import (
    as_conversation,
    check_abilities,
    check_own_plan,
    check_pinned_models,
    check_pool_abilities,
    check_routing_fields,
    check_sizes,
    check_template,
)
from r2_serve.router.context import WORKER_STAGES, QueryContext, lowered
from r2_serve.router.costs import Costs
from r2_serve.router.decomposer import Decomposes, Decomposition
from r2_serve.router.demand import Demand, QueryDemand
from r2_serve.router.events import EventBus
from r2_serve.router.explore import explored
from r2_serve.router.fitted_plan import read_fitted_plan
from r2_serve.router.foresight import Whole, whole_query
from r2_serve.router.gates import OWN, GateShelf
from r2_serve.router.plan_or_not import PlanDropped, PlanOrNot, allocator_reads
from r2_serve.router.plan_run import PlanRun
from r2_serve.router.policies import AllocationPolicy
from r2_serve.router.rollout import router_of
from r2_serve.router.savings import savings
from r2_serve.router.sessions import Sessions
from r2_serve.router.spill import Replicas, no_replicas
from r2_serve.router.synthesis import Final, synthesize
from r2_serve.router.turns import answer_turn
from r2_serve.router.whole import answer_whole
from r2_serve.types import (
    Allocation,
    Answer,
    CallRecord,
    DecisionReason,
    Message,
    OnDelta,
    Plan,
    Query,
    Trace,
)

Sink = Callable[[Trace], None]
"""Takes the trace of a finished query."""
_WHOLE = Plan.single("the whole query")


@dataclass
class Pipeline:
    """Answers queries. `routing` may be replaced at any time: a query keeps the one it started with."""

    pool: Pool
    routing: RoutingConfig
    decomposer: Decomposes
    allocator: Allocates
    sinks: Sequence[Sink] = ()
    """Each takes the trace of every query, answered or failed."""
    replicas: Replicas = no_replicas
    """Number of running replicas by model, which decides whether subtasks spill to another model."""
    demand: Demand = field(default_factory=Demand)
    """Learns of every plan and call, so that models can be scaled before the calls come."""
    sessions: Sessions = field(default_factory=Sessions)
    """Which conversations are on which model."""
    events: EventBus = field(default_factory=EventBus)
    """Takes what happens to queries to those who watch them."""
    shelf: GateShelf = field(default_factory=GateShelf)
    """The gates of the routing, made once."""

    def route_by(self, routing: RoutingConfig) -> None:
        """Use `routing` for the queries to come.

        Raises: ConfigError if a gate cannot be made or a `plan_file` be read; nothing has changed then.
        """
        for _, virtual in routing.routers:
            if virtual.plan_file is not None:
                read_fitted_plan(virtual.plan_file)
        self.shelf.take(routing)
        self.routing = routing

    async def answer(
        self, query: Query, on_delta: OnDelta | None = None, purse: Purse | None = None
    ) -> Answer:
        """The answer to `query`. Where its final step can stream, pieces of it go to `on_delta` as they come.

        Every call is paid from `purse`. Cancelling the task stops every call made for the query.

        Raises: R2Error.
        """
        routing = self.routing
        virtual = router_of(query, routing)
        if virtual is None and query.model not in self.pool:
            raise ModelNotFound(
                f"no model {query.model!r}; choose one of {[*routing.virtual_models, *self.pool]}"
            )
        if virtual is not None:
            query = as_conversation(query)
        context = self._context(query, routing, on_delta, purse)
        with self.events.at_work(context.trace):
            return await self._told(context, virtual)

    async def _told(self, context: QueryContext, virtual: VirtualModelConfig | None) -> Answer:
        """The answer, with its events and its trace."""
        deadline_s = context.limits.deadline_s
        context.tell("started", query=context.text, began_s=context.began_s, deadline_s=deadline_s)
        try:
            final = await _within_deadline(context, virtual)
        except (Exception, asyncio.CancelledError) as e:
            cost_usd = context.ledger.cost_usd
            if isinstance(e, R2Error) and context.ledger.calls:
                e.cost_usd = cost_usd
            context.tell("failed", error=error_text(e), cost_usd=cost_usd)
            self._publish(context.trace(error=error_text(e)))
            raise
        if virtual is not None:
            context.draft.savings = savings(context, virtual, final.text)
        trace = self._publish(context.trace(answer=final.text))
        paid = {"cost_usd": trace.cost_usd, "saved_usd": trace.savings and trace.savings.saved_usd}
        context.tell("answered", answer=final.text, finish_reason=final.finish_reason, **paid)
        return _answer(final, trace, context)

    def _context(
        self, query: Query, routing: RoutingConfig, on_delta: OnDelta | None, purse: Purse | None
    ) -> QueryContext:
        limits = lowered(routing.limits, query)
        is_own = query.max_cost_usd is not None and query.max_cost_usd == limits.max_cost_usd
        cost_limit = "r2.max_cost_usd" if is_own else "the operator's limits.max_cost_usd"
        budget = Budget(
            limits.max_calls, limits.max_total_tokens, limits.max_cost_usd, cost_limit, query.priority
        )

        def learn(call: CallRecord) -> None:
            self.demand.learn(call)
            context.tell_call(call)

        ledger = Ledger(budget, purse=purse, on_call=learn, context=query.context)
        context = QueryContext(
            query=query,
            text=conversation_text(query.messages),
            limits=limits,
            decomposer=self.decomposer,
            allocator=self.allocator,
            caller=Caller(self.pool, ledger, limits),
            demand=self.demand,
            replicas=self.replicas,
            sessions=self.sessions,
            gates=self.shelf.of(query, routing, self.pool, final_needs(query)),
            on_delta=on_delta,
            events=self.events,
        )
        return context

    def _publish(self, trace: Trace) -> Trace:
        for sink in self.sinks:
            sink(trace)
        return trace


async def pass_through(context: QueryContext) -> Final:
    """Send the conversation as it is to the pool model that the client named."""
    query = context.query
    context.draft.policy = "pass_through"
    spec = CallSpec(
        render=lambda codec: codec.render_query(query.messages),
        stage="pass_through",
        sampling=query.sampling,
        on_delta=context.on_delta,
        is_verbatim=True,
    )
    with context.demand.query(query.model) as expected:
        expected.plan(_WHOLE, everything_to(query.model, _WHOLE))
        with expected.calling(1, query.model):
            return Final.of(await context.caller.call(query.model, spec))


async def route(context: QueryContext, virtual: VirtualModelConfig) -> Final:
    """Split the query and make the answer by its plan, or send it whole, as `PlanOrNot` decides."""
    query, draft = context.query, context.draft
    draft.policy = _policy_of(query, virtual)
    policy = AllocationPolicy.parse(draft.policy, virtual.pool, context.gates.by_name)
    draft.shares = policy.chances
    check_pinned_models(query.pinned, [*virtual.pool, *context.gates.by_name])
    check_pool_abilities(query, [context.caller.pool[name].config for name in virtual.pool])
    if query.is_plan_only:
        plan = draft.plan = (await _decompose(context, virtual)).plan
        return Final(plan.model_dump_json(exclude_none=True), "stop")
    costs = Costs(context.gates, query, virtual, context.limits)
    choice = PlanOrNot(costs, context.ledger, policy)
    draft.decision = choice.decide()
    context.tell_decision()
    with context.demand.query(query.model) as expected:
        return await _planned_or_whole(context, virtual, policy, choice, expected)


def _policy_of(query: Query, virtual: VirtualModelConfig) -> str:
    """The policy of the request, of its gate, or of the virtual model.

    A gate of the request answers every step of the client's own plan, or else the query whole."""
    if query.gate is None:
        return query.policy or virtual.policy
    name = query.gate if isinstance(query.gate, str) else OWN
    return f"{'one' if query.plan is None else 'all'}:{name}"


async def _planned_or_whole(
    context: QueryContext,
    virtual: VirtualModelConfig,
    policy: AllocationPolicy,
    choice: PlanOrNot,
    expected: QueryDemand,
) -> Final:
    query, decision = context.query, context.draft.decision
    assert decision is not None
    whole = None
    if decision.action == "planned":
        whole = None if query.plan is not None else whole_query(context, virtual)
        try:
            return await _answer_by_plan(context, virtual, policy, choice, whole, expected)
        except PlanDropped as e:
            _drop(context, e.reason)
        except BudgetExceeded:
            if whole is None or any(call.stage == "execute" for call in context.ledger.calls):
                raise
            _drop(context, "no_budget")
    elif decision.reason in ("asked", "beyond_text") or (
        decision.reason == "configured" and virtual.whole is None
    ):
        return await answer_turn(context, virtual, policy, expected)
    whole = whole or whole_query(context, virtual)
    return await answer_whole(context, virtual, choice.whole_action(whole.model), expected)


def _drop(context: QueryContext, reason: DecisionReason) -> None:
    """Notes that a plan gives way to the query whole."""
    draft = context.draft
    assert draft.decision is not None
    update = {"action": "whole", "reason": reason, "dropped_plan": draft.plan}
    draft.decision = draft.decision.model_copy(update=update)
    context.tell_decision()


async def _answer_by_plan(
    context: QueryContext,
    virtual: VirtualModelConfig,
    policy: AllocationPolicy,
    choice: PlanOrNot,
    whole: Whole | None,
    expected: QueryDemand,
) -> Final:
    """Decompose the query, allocate its subtasks, run the plan and make the answer.

    A plan that was chosen to save money is held to that. The money for `whole` is set aside for as long as
    the query may still go whole to one model.

    Raises: PlanDropped if the plan will not save; BudgetExceeded.
    """
    query, draft = context.query, context.draft
    assert draft.decision is not None
    has_to_save = draft.decision.reason == "may_save"
    with ExitStack() as aside:
        if whole is not None:
            aside.enter_context(context.ledger.allowance.set_aside(whole.need))
        made = await _decompose(context, virtual, choice.sampler() if has_to_save else None)
        plan = made.plan
        if has_to_save:
            _check_usable(plan, context)
        draft.plan = plan
        context.tell("planned", plan=plan)
        check_template(plan, query)
        how = choice.allocator(plan) if has_to_save else (virtual.allocator, allocator_reads(query, virtual))
        allocation = await _allocate(context, virtual, made, policy, *how)
        allocation = with_able_models(query, context.gates, virtual.pool, plan, allocation)
        draft.allocation = allocation if has_to_save else explored(context, virtual, plan, allocation)
        cost = choice.plan_cost(plan, draft.allocation.models)
        draft.decision = draft.decision.model_copy(update={"plan_usd": cost.total_usd})
        limits = choice.step_limits(cost) if has_to_save else None
        expected.plan(plan, context.gates.first_models(draft.allocation))
        if not has_to_save:
            aside.close()
        calls = await PlanRun(context, virtual, plan, draft.allocation, expected, limits).calls()
    return synthesize(plan, calls, query.sampling, context.limits)


def _check_usable(plan: Plan, context: QueryContext) -> None:
    """Raises: PlanDropped if no plan is valid, or its template cannot keep to the client's format."""
    if context.draft.plan_fallback is not None:
        raise PlanDropped("no_valid_plan")
    try:
        check_template(plan, context.query)
    except InvalidRequest as e:
        raise PlanDropped("no_format") from e


async def _decompose(
    context: QueryContext, virtual: VirtualModelConfig, sampler: DecomposerConfig | None = None
) -> Decomposition:
    """The client's own plan, or the decomposer's; `sampler` takes the place of the config's."""
    own, config, draft = context.query.plan, sampler or virtual.decomposer, context.draft
    if own is not None:
        check_own_plan(own, context.limits)
        return Decomposition(plan=own, num_samples=0, num_rejected=0)
    if config.allocates:
        config = config.model_copy(update={"pool": virtual.pool})
    messages = readable_by(context.caller.pool[config.model], context.query.messages)
    with context.demand.calling(config.model, num_calls=config.num_at_once):
        made = await context.decomposer.decompose(messages, config, context.limits, context.ledger)
    draft.num_plan_samples, draft.num_plan_rejected = made.num_samples, made.num_rejected
    draft.plan_fallback = made.fallback
    return made


async def _allocate(
    context: QueryContext,
    virtual: VirtualModelConfig,
    made: Decomposition,
    policy: AllocationPolicy,
    config: AllocatorConfig,
    messages: tuple[Message, ...],
) -> Allocation:
    """A model for each subtask: the client's pin, else the policy's choice, else the decomposer's where it
    allocates, else the allocator's."""
    plan, pinned = made.plan, context.query.pinned
    chosen = policy.allocation(plan, seed=context.query.request_id) or made.allocation
    if chosen is None and (context.draft.plan_fallback is not None or len(pinned) == len(plan.subtasks)):
        chosen = everything_to(virtual.fallback_model, plan)
    if chosen is None:
        chosen = await _ask_allocator(context, virtual, plan, config, messages)
    return Allocation(models=tuple(pinned.get(i, model) for i, model in enumerate(chosen.models, 1)))


async def _ask_allocator(
    context: QueryContext,
    virtual: VirtualModelConfig,
    plan: Plan,
    config: AllocatorConfig,
    messages: tuple[Message, ...],
) -> Allocation:
    task = AllocationTask(
        messages=readable_by(context.caller.pool[config.model], messages),
        plan=plan,
        config=config,
        names=virtual.pool,
        gates=tuple(context.gates.cards()),
        fallback_model=virtual.fallback_model,
        limits=context.limits,
    )
    with context.demand.calling(task.config.model):
        made = await context.allocator.allocate(task, context.ledger)
    context.draft.allocation_fallback = made.fallback
    return made.allocation


async def _within_deadline(context: QueryContext, virtual: VirtualModelConfig | None) -> Final:
    """The final answer. Raises: DeadlineExceeded once the deadline of the query has passed."""
    deadline_s = context.limits.deadline_s
    try:
        async with asyncio.timeout(deadline_s) as scope:
            check_routing_fields(context.query, is_virtual=virtual is not None)
            pool = context.caller.pool
            model = None if virtual else pool[context.query.model].config
            may_read = [model] if model else [pool[name].config for name in virtual.pool] if virtual else []
            if model is not None:
                check_abilities(context.query, model, (member.config for member in pool.values()))
            check_sizes(context.query, context.text, context.limits, may_read)
            return await (pass_through(context) if virtual is None else route(context, virtual))
    except TimeoutError as e:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"no answer within the deadline of {deadline_s:g} s") from e


def _answer(final: Final, trace: Trace, context: QueryContext) -> Answer:
    workers = [call.model for call in trace.calls if call.stage in WORKER_STAGES and call.outcome == "ok"]
    return Answer(
        text=final.text,
        finish_reason=final.finish_reason,
        confidence=final.confidence,
        body=final.body,
        usage=context.ledger.usage,
        cost_usd=trace.cost_usd,
        models=tuple(dict.fromkeys(workers)),
        num_subtasks=len(trace.results),
        overhead_s=trace.overhead_s,
        trace=trace,
    )
