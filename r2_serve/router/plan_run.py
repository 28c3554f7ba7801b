"""Runs an allocated plan: one call for each subtask, and one line of the trace for each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from r2_serve.calls.caller import CallResult, CallSpec
from r2_serve.calls.ledger import total_cost_usd
from r2_serve.config import VirtualModelConfig
from r2_serve.errors import EngineError, SubtaskFailed
from r2_serve.prompts import Codec, get_codec
from r2_serve.prompts.conversation import without_tool_calls
from r2_serve.router.able import final_needs, inner_needs, stand_ins_when_it_fails
from r2_serve.router.context import QueryContext, read_by
from r2_serve.router.demand import QueryDemand
from r2_serve.router.evidence import Question
from r2_serve.router.executor import execute
from r2_serve.router.foresight import StepModels, fitting, plan_need
from r2_serve.router.gated_step import GatedStep
from r2_serve.router.gates import Gate
from r2_serve.router.plan_or_not import PlanDropped, StepLimits
from r2_serve.router.policies import LEARNED
from r2_serve.router.spill import with_room
from r2_serve.router.synthesis import bounded, confidence, cut_to_chars
from r2_serve.types import (
    Allocation,
    GateNote,
    Message,
    Need,
    Plan,
    Sampling,
    Subtask,
    SubtaskResult,
    substitute,
)

LEAST_ANSWER_CHARS = 500
"""Length to which answers that a step reads are cut at most, where no model holds them in full."""


@dataclass(frozen=True)
class _Done:
    """The call of a subtask, and its line in the trace."""

    call: CallResult
    result: SubtaskResult


@dataclass(frozen=True)
class PlanRun:
    """One plan at work. Its results go to the draft of the trace, also those of a plan that fails."""

    context: QueryContext
    virtual: VirtualModelConfig
    plan: Plan
    allocation: Allocation
    expected: QueryDemand
    limits: StepLimits | None = None
    """Limits of the inner steps of a plan that has to save; one that reaches its limit ends the plan."""
    _done: dict[int, _Done] = field(default_factory=dict)
    _blank: dict[int, CallSpec] = field(default_factory=dict)
    """The call of each step with empty answers of other steps."""

    async def calls(self) -> dict[int, CallResult]:
        """Run the plan; the call that answered each subtask, by subtask id.

        Nothing is called unless every step's prompt has a model that holds it, and the budgets pay for all.

        Raises: InvalidRequest, BudgetExceeded, SubtaskFailed, PoisonousRequest, PlanDropped.
        """
        self.context.tell("allocated", plan=self.plan, models=self.allocation.models)
        models = [self._models_of(subtask) for subtask in self.plan.subtasks]
        for subtask, step in zip(self.plan.subtasks, models, strict=True):
            blank = dict.fromkeys(subtask.depends_on, "")
            self._blank[subtask.id] = self._spec(subtask, blank, step.names[-1])
        needed = plan_need(self.context, self.plan, models, self._blank)
        with self.context.ledger.allowance.prepaid(needed.need.usd):
            return await self._calls(needed.num_asked)

    def _models_of(self, subtask: Subtask) -> StepModels:
        """The models that a step may ask: its own, or those of its gate that can take it."""
        query, gates, name = self.context.query, self.context.gates, self.allocation.models[subtask.id - 1]
        needs = final_needs(query) if subtask.id == self.plan.final_id else self._inner_needs
        return StepModels(gates.models(name, needs), gates.checkers(name))

    @cached_property
    def _inner_needs(self) -> tuple[Need, ...]:
        """What every step but the last needs."""
        return inner_needs(self.context.query)

    async def _calls(self, num_asked: int) -> dict[int, CallResult]:
        began_s = self.context.ledger.elapsed_s()

        async def run(subtask: Subtask, inputs: dict[int, _Done]) -> _Done:
            ready_s = max((needed.result.end_s for needed in inputs.values()), default=began_s)
            self._done[subtask.id] = await self._subtask(subtask, inputs, ready_s, num_asked)
            return self._done[subtask.id]

        try:
            done = await execute(self.plan, run, max_parallel=self.context.limits.max_parallel)
        finally:
            self.context.draft.results = tuple(self._done[i].result for i in sorted(self._done))
        return {subtask_id: each.call for subtask_id, each in done.items()}

    async def _subtask(
        self, subtask: Subtask, inputs: Mapping[int, _Done], ready_s: float, num_asked: int
    ) -> _Done:
        start_s, name = self.context.ledger.elapsed_s(), self.allocation.models[subtask.id - 1]
        gate, note = self.context.gates.get(name), None
        is_last = subtask.id == self.plan.final_id
        self.context.tell("step_started", subtask=subtask.id, models=(name,))
        try:
            if gate is None:
                call = await self._ask(subtask, *self._call(subtask, inputs, name))
            else:
                call, note = await self._gated(gate, subtask, inputs, num_asked)
        except EngineError as e:
            is_only = len(self.plan.subtasks) == 1
            raise SubtaskFailed.by(e, subtask.id, name, is_final=is_last, is_only=is_only) from e
        if not is_last and self.limits is not None and call.completion.finish_reason == "length":
            raise PlanDropped("ran_away")
        result = self._result(subtask, call, ready_s, start_s, note)
        self.context.tell(
            "step_done",
            subtask=subtask.id,
            models=(result.model,),
            answer=result.answer,
            finish_reason=result.finish_reason,
            cost_usd=result.cost_usd,
        )
        return _Done(call, result)

    async def _ask(
        self, subtask: Subtask, model: str, spec: CallSpec, *, is_first: bool = True
    ) -> CallResult:
        """The reply of a model to a step. An inner step that is cut is asked for again, without limits.

        `is_first` is False for a model that a gate asks after another one."""
        caller, demand = self.context.caller, self.context.demand
        is_plain = subtask.id == self.plan.final_id or self.limits is not None
        with self.expected.calling(subtask.id, model) if is_first else demand.calling(model):
            return await (caller.call if is_plain else caller.call_uncut)(model, spec)

    async def _gated(
        self, gate: Gate, subtask: Subtask, inputs: Mapping[int, _Done], num_asked: int
    ) -> tuple[CallResult, GateNote]:
        """The answer that a gate keeps."""
        limits, models = self.context.limits, self._models_of(subtask).names
        answers = {i: cut_to_chars(done.call.answer, limits.max_answer_chars) for i, done in inputs.items()}
        read = bounded(subtask.text, answers, limits)
        spec = self._spec(subtask, read, models[-1]) if inputs else self._blank[subtask.id]
        is_query = self._is_whole(get_codec("instruct"))
        text = self.context.query.messages[-1].text if is_query else substitute(subtask.text, read)
        step = GatedStep(
            context=self.context,
            gate=gate,
            models=models,
            spec=spec,
            question=Question(text, spec.render, subtask.id, self.context.caller),
            last=lambda model: self._call(subtask, inputs, model),
            ask=lambda model, spec: self._ask(subtask, model, spec, is_first=model == models[0]),
        )
        return await step.answer(num_asked)

    def _call(self, subtask: Subtask, inputs: Mapping[int, _Done], model: str) -> tuple[str, CallSpec]:
        """Model and prompt of a step, now that the answers that it reads are known.

        A model that does not hold the prompt, or cannot be paid, gives way to a stand-in that does. If there
        is none, the step reads less of each answer: they are paid for, so the step is not refused for them.
        """
        limits, blank = self.context.limits, self._blank[subtask.id]
        max_chars = limits.max_answer_chars
        while True:
            answers = {i: cut_to_chars(needed.call.answer, max_chars) for i, needed in inputs.items()}
            read = bounded(subtask.text, answers, limits)
            spec = self._spec(subtask, read, model) if inputs else blank
            chosen = self._with_room(model, spec)
            found = fitting(self.context, chosen, spec)
            if found is not None or max_chars <= LEAST_ANSWER_CHARS or not inputs:
                return found or chosen, spec
            max_chars //= 2

    def _spec(self, subtask: Subtask, answers: Mapping[int, str], model: str) -> CallSpec:
        """What to ask for a subtask. The client's sampling and stream belong to the final one alone."""
        query, is_final = self.context.query, subtask.id == self.plan.final_id
        messages = query.messages if is_final else without_tool_calls(query.messages)
        read = read_by(subtask, self.plan, messages, self.virtual)
        limit = None if self.limits is None else self.limits.of(subtask.id)

        def render(codec: Codec) -> list[Message]:
            if self._is_whole(codec):
                return codec.render_query(messages)
            return codec.with_prompts(self.virtual.prompts).render_subtask(read, self.plan, subtask, answers)

        return CallSpec(
            render=render,
            stage="execute",
            subtask=subtask.id,
            sampling=query.sampling if is_final else Sampling(temperature=0.0, max_tokens=limit),
            on_delta=self.context.on_delta if is_final else None,
            is_verbatim=is_final,
            stand_ins=self._stand_ins(subtask, model),
        )

    def _stand_ins(self, subtask: Subtask, model: str) -> tuple[str, ...]:
        """The other models of the pool, unless the request named the model or the operator wants none."""
        query = self.context.query
        is_named = subtask.id in query.pinned or query.policy not in (None, LEARNED)
        if is_named or self.virtual.fallbacks == "typed":
            return ()
        return tuple(stand_ins_when_it_fails(model, self.virtual.pool, self.context.caller.pool))

    def _is_whole(self, codec: Codec) -> bool:
        """Whether the one step of the plan is the client's conversation itself, which is sent unwrapped.

        The text of a step counts where the client wrote it, and where the model reads nothing else."""
        if self.context.draft.plan_fallback is not None:
            return True
        is_one_step = len(self.plan.subtasks) == 1 and self.plan.final_id is not None
        if not is_one_step or not codec.takes_conversations:
            return False
        own = self.context.query.plan
        return own is None or own == Plan.single(self.context.text)

    def _with_room(self, model: str, spec: CallSpec) -> str:
        """`model`, or a stand-in if it has no room. A model that the client pinned is kept."""
        context = self.context
        if self.virtual.spill is None or spec.subtask in context.query.pinned:
            return model
        return with_room(
            model,
            self.virtual.pool,
            spec,
            pool=context.caller.pool,
            demand=context.demand,
            replicas=context.replicas,
            config=self.virtual.spill,
        )

    def _result(
        self, subtask: Subtask, call: CallResult, ready_s: float, start_s: float, gate: GateNote | None
    ) -> SubtaskResult:
        ledger = self.context.ledger
        return SubtaskResult(
            id=subtask.id,
            model=call.model,
            answer=call.answer,
            usage=call.completion.usage,
            cost_usd=total_cost_usd(
                c for c in ledger.calls if c.subtask == subtask.id and c.start_s >= start_s
            ),
            num_attempts=call.num_attempts,
            finish_reason=call.completion.finish_reason,
            confidence=confidence(call.completion.logprobs),
            gate=gate,
            ready_s=ready_s,
            start_s=start_s,
            end_s=ledger.elapsed_s(),
        )
