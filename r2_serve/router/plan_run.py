"""Runs an allocated plan: one call for each subtask, and one line of the trace for each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r2_serve.calls.caller import CallResult, CallSpec
from r2_serve.calls.ledger import total_cost_usd
from r2_serve.config import VirtualModelConfig
from r2_serve.errors import EngineError, SubtaskFailed
from r2_serve.prompts import Codec
from r2_serve.prompts.conversation import without_tool_calls
from r2_serve.router.able import stand_ins
from r2_serve.router.context import QueryContext, read_by
from r2_serve.router.demand import QueryDemand
from r2_serve.router.executor import execute
from r2_serve.router.foresight import fitting, plan_need
from r2_serve.router.plan_or_not import PlanDropped, StepLimits
from r2_serve.router.policies import LEARNED
from r2_serve.router.spill import with_room
from r2_serve.router.synthesis import bounded, confidence, cut_to_chars
from r2_serve.types import Allocation, Message, Plan, Sampling, Subtask, SubtaskResult

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
        for subtask in self.plan.subtasks:
            self._blank[subtask.id] = self._spec(subtask, dict.fromkeys(subtask.depends_on, ""))
        need = plan_need(self.context, self.plan, self.allocation.models, self._blank)
        with self.context.ledger.allowance.prepaid(need.usd):
            return await self._calls()

    async def _calls(self) -> dict[int, CallResult]:
        began_s = self.context.ledger.elapsed_s()

        async def run(subtask: Subtask, inputs: dict[int, _Done]) -> _Done:
            ready_s = max((needed.result.end_s for needed in inputs.values()), default=began_s)
            self._done[subtask.id] = await self._subtask(subtask, inputs, ready_s)
            return self._done[subtask.id]

        try:
            done = await execute(self.plan, run, max_parallel=self.context.limits.max_parallel)
        finally:
            self.context.draft.results = tuple(self._done[i].result for i in sorted(self._done))
        return {subtask_id: each.call for subtask_id, each in done.items()}

    async def _subtask(self, subtask: Subtask, inputs: Mapping[int, _Done], ready_s: float) -> _Done:
        context, start_s = self.context, self.context.ledger.elapsed_s()
        model, spec = self._call(subtask, inputs)
        is_last = subtask.id == self.plan.final_id
        is_plain = is_last or self.limits is not None
        try:
            with self.expected.calling(subtask.id, model):
                call = await (context.caller.call if is_plain else context.caller.call_uncut)(model, spec)
        except EngineError as e:
            is_only = len(self.plan.subtasks) == 1
            raise SubtaskFailed.by(e, subtask.id, model, is_final=is_last, is_only=is_only) from e
        if not is_last and self.limits is not None and call.completion.finish_reason == "length":
            raise PlanDropped("ran_away")
        return _Done(call, self._result(subtask, call, ready_s, start_s))

    def _call(self, subtask: Subtask, inputs: Mapping[int, _Done]) -> tuple[str, CallSpec]:
        """Model and prompt of a step, now that the answers that it reads are known.

        A model that does not hold the prompt, or cannot be paid, gives way to a stand-in that does. If there
        is none, the step reads less of each answer: they are paid for, so the step is not refused for them.
        """
        limits, blank = self.context.limits, self._blank[subtask.id]
        max_chars = limits.max_answer_chars
        while True:
            answers = {i: cut_to_chars(needed.call.answer, max_chars) for i, needed in inputs.items()}
            spec = self._spec(subtask, bounded(subtask.text, answers, limits)) if inputs else blank
            chosen = self._with_room(self.allocation.models[subtask.id - 1], spec)
            model = fitting(self.context, chosen, spec)
            if model is not None or max_chars <= LEAST_ANSWER_CHARS or not inputs:
                return model or chosen, spec
            max_chars //= 2

    def _spec(self, subtask: Subtask, answers: Mapping[int, str]) -> CallSpec:
        """What to ask for a subtask. The client's sampling and stream belong to the final one alone."""
        query, is_final = self.context.query, subtask.id == self.plan.final_id
        messages = query.messages if is_final else without_tool_calls(query.messages)
        read = read_by(subtask, self.plan, messages, self.virtual)
        limit = None if self.limits is None else self.limits.of(subtask.id)

        def render(codec: Codec) -> list[Message]:
            if self._is_whole(codec):
                return codec.render_query(messages)
            return codec.render_subtask(read, self.plan, subtask, answers)

        return CallSpec(
            render=render,
            stage="execute",
            subtask=subtask.id,
            sampling=query.sampling if is_final else Sampling(temperature=0.0, max_tokens=limit),
            on_delta=self.context.on_delta if is_final else None,
            is_verbatim=is_final,
            stand_ins=self._stand_ins(subtask),
        )

    def _stand_ins(self, subtask: Subtask) -> tuple[str, ...]:
        """The other models of the pool, unless the request named the model or the operator wants none."""
        query, model = self.context.query, self.allocation.models[subtask.id - 1]
        is_named = subtask.id in query.pinned or query.policy not in (None, LEARNED)
        if is_named or self.virtual.fallbacks == "typed":
            return ()
        return tuple(stand_ins(model, self.virtual.pool, self.context.caller.pool))

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

    def _result(self, subtask: Subtask, call: CallResult, ready_s: float, start_s: float) -> SubtaskResult:
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
            ready_s=ready_s,
            start_s=start_s,
            end_s=ledger.elapsed_s(),
        )
