"""One step that a gate answers: how its models are asked, and how the kept answer is shown. No Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from r2_serve.calls.caller import CallResult, CallSpec
from r2_serve.errors import ContextOverflow, EngineError, EngineRefused, EngineUnavailable
from r2_serve.router.context import QueryContext
from r2_serve.router.evidence import Question
from r2_serve.router.foresight import fitting, need_of
from r2_serve.router.gate_run import GateRun
from r2_serve.router.gates import Gate
from r2_serve.types import Completion, Delta, GateAsk, GateNote, Json


class GateOver(Exception):
    """A gate ends with an error of a model: the client has seen a part of its reply, or every other model
    would refuse the client's request too."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class GatedStep:
    """A step at work. A reply is shown as it comes only if it is surely kept; else whole, once accepted."""

    context: QueryContext
    gate: Gate
    models: tuple[str, ...]
    spec: CallSpec
    """The step's call, with the answers that it reads in full."""
    question: Question
    last: Callable[[str], tuple[str, CallSpec]]
    """Model and call in place of the last model: a stand-in may take it, and it may read shorter answers."""
    ask: Callable[[str, CallSpec], Awaitable[CallResult]]
    _has_shown: bool = field(default=False, init=False)

    async def answer(self, num_asked: int) -> tuple[CallResult, GateNote]:
        """The answer that is kept, and what was asked for it.

        Raises: EngineError, BudgetExceeded, PoisonousRequest.
        """
        try:
            run = GateRun(self.gate, self.models, self.question, self._ask, num_asked, self._tell)
            call, note = await run.run()
        except GateOver as e:
            raise e.error from e
        self.context.gates.reach.learn(note)
        if self.spec.on_delta is not None and not self._has_shown:
            for piece in shown_whole(call.completion):
                await self.spec.on_delta(piece)
        return call, note

    async def _ask(self, model: str, is_last: bool) -> CallResult:
        if is_last:
            chosen, spec = self.last(model)
            is_live = self.gate.judge.keeps_last and spec.on_delta is not None
            spec = spec.but(on_delta=self._show if is_live else None)
        else:
            chosen, spec = model, self._tried(model)
        if self._needs_confidence(chosen, is_last=is_last):
            spec = spec.but(sampling=spec.sampling.model_copy(update={"logprobs": True}))
        try:
            return await self.ask(chosen, spec)
        except EngineError as e:
            if self._has_shown or (spec.is_verbatim and type(e) is EngineRefused):
                raise GateOver(e) from e
            raise

    def _needs_confidence(self, model: str, *, is_last: bool) -> bool:
        """Whether the judge reads the confidence of a model's answer, and the model reports one."""
        judge, abilities = self.gate.judge, self.context.caller.pool[model].config.abilities
        return judge.wants_confidence and "logprobs" in abilities and not (is_last and judge.keeps_last)

    def _tell(self, asked: GateAsk) -> None:
        self.context.tell("asked", subtask=self.question.subtask, asked=asked)

    def _tried(self, model: str) -> CallSpec:
        """The call of a model after which others follow: no stand-in, and no stream.

        Raises: ContextOverflow, EngineUnavailable, BudgetExceeded where it is not worth a try.
        """
        member = self.context.caller.pool[model]
        spec = self.spec.but(on_delta=None, stand_ins=(), is_alone=True)
        if member.cooldown.left_s():
            raise EngineUnavailable(f"{model} rests after failures")
        if fitting(self.context, model, spec) is None:
            allowance, need = self.context.ledger.allowance, need_of(member, spec)
            if not allowance.has_room(need):
                raise allowance.refusal_of(need)
            raise ContextOverflow(f"{model} does not hold the prompt")
        return spec

    async def _show(self, piece: Delta) -> None:
        self._has_shown = True
        assert self.spec.on_delta is not None
        await self.spec.on_delta(piece)


def shown_whole(completion: Completion) -> list[Delta]:
    """A hosted model's whole reply as the pieces of a stream; empty where its text is all that there is."""
    choices = (completion.body or {}).get("choices")
    if not isinstance(choices, list) or not choices:
        return []
    said, ends = (
        [_chunk(choice, is_end=False) for choice in choices],
        [_chunk(c, is_end=True) for c in choices],
    )
    return [
        Delta(text=completion.text, body={"choices": said}),
        Delta(body={"choices": ends}),
    ]


def _chunk(choice: Json, *, is_end: bool) -> Json:
    message = choice.get("message")
    held = dict(message) if isinstance(message, dict) and not is_end else {}
    if calls := held.get("tool_calls"):
        held["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
    return {
        "index": choice.get("index", 0),
        "delta": held,
        "finish_reason": choice.get("finish_reason") if is_end else None,
    }
