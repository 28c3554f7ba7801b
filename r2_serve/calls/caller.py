"""One model call as the router makes it: reserved, bounded in time, retried, passed on to fallbacks, settled.

This is the only retry loop of the project; `r2_serve.calls.retry_rules` has its rules as a table.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace

from r2_serve.calls.attempt import Attempt
from r2_serve.calls.cooldown import Permit, event_loop_time_s
from r2_serve.calls.estimates import Prompt
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.calls.quarantine import MAX_DEATHS
from r2_serve.calls.retry_rules import Failure, backoff_s, is_retried, most_telling
from r2_serve.config import LimitsConfig
from r2_serve.errors import (
    BudgetExceeded,
    EngineError,
    EngineRefused,
    PoisonousRequest,
    ReplicaDied,
    ReplyCut,
    counted,
)
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import (
    CallStage,
    Completion,
    Delta,
    EngineCall,
    Json,
    Message,
    OnDelta,
    Sampling,
    asks_of,
)

MORE_ROOM = 4
"""How many times the length of a reply that was cut the second one may have."""


@dataclass(frozen=True)
class CallSpec:
    """What to ask, before it is known which model will answer: prompts depend on the model's codec."""

    render: Callable[[Codec], list[Message]]
    stage: CallStage
    sampling: Sampling = field(default_factory=Sampling)
    subtask: int | None = None
    adapter: str | None = None
    """Adapter of the model asked first; fallbacks are asked without one."""
    on_delta: OnDelta | None = None
    """Takes the pieces of the reply as they come; None for a reply that is read as a whole."""
    is_verbatim: bool = False
    """Whether the reply is the client's, who gets all of it as it came where the model is hosted."""

    stand_ins: tuple[str, ...] = ()
    """Models asked after the fallbacks of the one asked first, where they suit."""
    is_alone: bool = False
    """Whether the one model is asked and no fallback of it, as by a gate, which has its own next model."""
    _prompts: dict[str, Prompt] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The prompts made so far, by model."""

    def suits(self, member: PoolMember) -> bool:
        """Whether `member` can do what the call needs, such as tools in its messages as they came."""
        messages = self.render(get_codec("instruct"))
        return member.config.lacking(asks_of(messages, self.sampling)) is None

    def but(self, **changes: object) -> CallSpec:
        """The same question, asked in another way, with the prompts that were made for it."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        changed._prompts.update(self._prompts)
        return changed

    def prompt_for(self, member: PoolMember) -> Prompt:
        """The prompt for `member`. It is rendered and counted once, as a document may be long."""
        name, sampling = member.config.name, self.sampling
        if name not in self._prompts:
            rendered = self.render(member.codec)
            self._prompts[name] = member.prompt(rendered, sampling.format_sent, sampling.forwarded)
        return self._prompts[name]


@dataclass(frozen=True)
class CallResult:
    """The reply to a call, and the model that gave it."""

    completion: Completion
    answer: str
    """The reply's text as the model's codec reads it."""
    model: str
    num_attempts: int


@dataclass
class Caller:
    """Makes the calls of one request. It uses two of `limits`: `max_attempts` and `cooldown`."""

    pool: Pool
    ledger: Ledger
    limits: LimitsConfig
    uniform: Callable[[], float] = field(default=random.random)
    """Draws from [0, 1), for the jitter of waits."""

    async def call(self, model: str, spec: CallSpec) -> CallResult:
        """Ask `model`, then its fallbacks and the stand-ins of `spec`, each as often as the rules allow.

        Models at rest are passed over, and asked only if all others failed. What the budget does not allow
        a stand-in is not asked of it, and a client's request that was refused is asked of none.

        Raises: the most telling EngineError if all failed; BudgetExceeded; PoisonousRequest.
        """
        chain = _Chain(self, model, spec)
        fallbacks = () if spec.is_alone else self.pool[model].config.fallbacks
        for name in (model, *(name for name in fallbacks if spec.suits(self.pool[name]))):
            if (result := await chain.ask(name)) is not None:
                return result
        for name in spec.stand_ins:
            if name in fallbacks or chain.is_refused or not spec.suits(self.pool[name]):
                continue
            with suppress(BudgetExceeded):
                if (result := await chain.ask(name)) is not None:
                    return result
        for name in chain.passed_over:
            if (result := await chain.ask(name, is_last_resort=True)) is not None:
                return result
        raise most_telling(chain.failures)

    async def call_uncut(self, model: str, spec: CallSpec) -> CallResult:
        """The reply to a call that others build on: one that is cut at its limit is asked for once more.

        The second reply may have `MORE_ROOM` times the length of the first, or less where the model's context
        is known to hold less. Models of the compact codec ramble where they are cut: their replies stay as
        they are.

        Raises: as `call`; ReplyCut if the second reply is cut too.
        """
        first = await self.call(model, spec)
        if not self._is_cut(first):
            return first
        room = self._more_room(first)
        longer = replace(spec, sampling=spec.sampling.model_copy(update={"max_tokens": room}))
        second = await self.call(first.model, longer)
        if self._is_cut(second):
            raise _cut(second)
        return replace(second, num_attempts=first.num_attempts + second.num_attempts)

    def _is_cut(self, result: CallResult) -> bool:
        has_rambled = not self.pool[result.model].codec.takes_conversations
        return result.completion.finish_reason == "length" and not has_rambled

    def _more_room(self, result: CallResult) -> int:
        """Tokens for the second try. Raises: ReplyCut if the context is used up."""
        config, usage = self.pool[result.model].config, result.completion.usage
        room = MORE_ROOM * usage.completion_tokens
        if config.has_known_context:
            room = min(room, config.context_tokens - usage.prompt_tokens)
        if room <= usage.completion_tokens:
            raise _cut(result)
        return room


def _cut(result: CallResult) -> ReplyCut:
    num_tokens = result.completion.usage.completion_tokens
    return ReplyCut(
        f"the reply of {result.model} was cut at {counted(num_tokens, 'token')}; "
        "raise max_tokens of the model, or ask for less in one step"
    )


class _Chain:
    """One call on its way from model to model."""

    def __init__(self, caller: Caller, first: str, spec: CallSpec) -> None:
        self.passed_over: dict[str, None] = {}
        """Models that rest, in the order in which they were passed over."""
        self.failures: list[Failure] = []
        self._caller, self._first, self._spec = caller, first, spec
        self._num_tried: dict[str, int] = {}
        self._given_up: set[str] = set()
        self._not_before_s: dict[str, float] = {}
        self._has_shown = False
        """Whether the client has seen a part of a reply: then no other reply can take its place."""
        self._deaths: set[str] = set()
        """Replicas that died while they worked on this call, which may have killed them."""

    async def ask(self, name: str, *, is_last_resort: bool = False) -> CallResult | None:
        """The reply of `name`; None if it failed, or rests and was passed over.

        Raises: EngineError if the client has seen a part of the reply; BudgetExceeded; PoisonousRequest.
        """
        member, limits = self._caller.pool[name], self._caller.limits
        while name not in self._given_up:
            permit = await self._permit(member, is_last_resort=is_last_resort)
            if permit is None:
                self.passed_over[name] = None
                return None
            num_tried = self._num_tried[name] = self._num_tried.get(name, 0) + 1
            try:
                with member.cooldown.observing(permit, limits.cooldown):
                    async with member.quarantine.turn() if self._deaths else nullcontext():
                        completion = await self._attempt(member).run()
            except EngineError as e:
                e.name_model(name)
                self.failures.append(Failure(e, is_by_first=name == self._first))
                self._check_may_go_on(e)
                wait_s = backoff_s(num_tried, e, self._caller.uniform())
                self._not_before_s[name] = event_loop_time_s() + wait_s
                if num_tried >= limits.max_attempts or not is_retried(e):
                    self._given_up.add(name)
            else:
                text = completion.text
                is_chat = self._spec.sampling.api == "chat"
                answer = member.codec.parse_answer(text) if is_chat else text
                return CallResult(completion, answer, name, self._num_attempts)
        return None

    @property
    def is_refused(self) -> bool:
        """Whether the provider refused the client's own request, which another one would refuse as well."""
        last = self.failures[-1].error if self.failures else None
        return self._spec.is_verbatim and type(last) is EngineRefused

    @property
    def _num_attempts(self) -> int:
        return sum(self._num_tried.values())

    def _check_may_go_on(self, error: EngineError) -> None:
        """Raises: `error` if the client has seen part of a reply; PoisonousRequest if replicas keep dying."""
        if self._has_shown:
            raise error
        if isinstance(error, ReplicaDied) and error.is_suspicious:
            self._deaths.add(error.lost)
        if len(self._deaths) >= MAX_DEATHS:
            raise PoisonousRequest(
                f"{len(self._deaths)} replicas died while they worked on this request, "
                "so it is not sent to another; change it"
            ) from error

    async def _permit(self, member: PoolMember, *, is_last_resort: bool) -> Permit | None:
        """Leave for the next try, given when it may be made; None if the model rests for longer than that."""
        member.cooldown.heed(self._caller.limits.cooldown)
        wait_s = max(0.0, self._not_before_s.get(member.config.name, 0.0) - event_loop_time_s())
        if not is_last_resort and member.cooldown.left_s() > wait_s:
            return None
        await asyncio.sleep(wait_s)
        return member.cooldown.insist() if is_last_resort else member.cooldown.ask()

    def _attempt(self, member: PoolMember) -> Attempt:
        """The next attempt, reserved. Raises: BudgetExceeded."""
        config, spec = member.config, self._spec
        max_tokens, prompt = spec.sampling.max_tokens or config.reply_limit, spec.prompt_for(member)
        reservation = self._caller.ledger.reserve(
            config,
            prompt,
            (max_tokens or config.reply_tokens) * spec.sampling.num_choices,
            is_limited=max_tokens is not None,
            stage=spec.stage,
            subtask=spec.subtask,
            attempt=self._num_attempts,
            passed_over=tuple(name for name in self.passed_over if name != config.name),
        )
        changes: Json = {"max_tokens": max_tokens}
        if "json_schema" not in config.abilities:
            changes["json_schema"] = None
        call = EngineCall(
            messages=tuple(prompt.messages),
            sampling=spec.sampling.model_copy(update=changes),
            adapter=spec.adapter if config.name == self._first else None,
            timeout_s=config.timeout_s,
            is_verbatim=spec.is_verbatim and config.codec == "instruct",
            trace_parent=reservation.trace_parent,
            priority=self._caller.ledger.allowance.budget.priority,
        )
        is_streamed = spec.on_delta is not None and member.codec.is_streamable
        return Attempt(member, call, reservation, self._show if is_streamed else None)

    async def _show(self, piece: Delta) -> None:
        self._has_shown = True
        assert self._spec.on_delta is not None
        await self._spec.on_delta(piece)
