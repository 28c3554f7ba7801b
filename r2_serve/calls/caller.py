"""One model call as the router makes it: reserved, bounded in time, retried, passed on to fallbacks, settled.

The only retry loop of the project. Hosted clients are told not to retry, Ray Serve never does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from r2_serve.calls.cooldown import Cooldown, Permit, event_loop_time_s
from r2_serve.calls.ledger import Ledger, Prompt, Reservation
from r2_serve.calls.quarantine import MAX_DEATHS, Quarantine
from r2_serve.config import LimitsConfig, ModelConfig
from r2_serve.engines.timing import paused
from r2_serve.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    InvalidReply,
    PoisonousRequest,
    ReplicaDied,
)
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import CallStage, Completion, Engine, EngineCall, Message, Sampling, Usage

OnDelta = Callable[[str], Awaitable[None]]
"""Takes a piece of the final answer's text as it comes."""
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 4.0


@dataclass(frozen=True)
class PoolMember:
    """A model that can be called."""

    config: ModelConfig
    engine: Engine
    cooldown: Cooldown = field(default_factory=Cooldown)
    quarantine: Quarantine = field(default_factory=Quarantine)

    @property
    def codec(self) -> Codec:
        return get_codec(self.config.codec)


Pool = Mapping[str, PoolMember]


@dataclass(frozen=True)
class CallSpec:
    """What to ask, before it is known which model will answer: prompts depend on the model's codec."""

    render: Callable[[Codec], list[Message]]
    stage: CallStage
    sampling: Sampling = field(default_factory=Sampling)
    subtask: int | None = None
    adapter: str | None = None
    """Of the model asked first; fallbacks have none."""
    on_delta: OnDelta | None = None

    def prompt_for(self, member: PoolMember) -> Prompt:
        return Prompt.to(member.config, self.render(member.codec), self.sampling.format_sent)


@dataclass(frozen=True)
class CallResult:
    """Who answered, and what."""

    completion: Completion
    answer: str
    """The reply's text as the model's codec reads it."""
    model: str
    num_attempts: int


@dataclass
class Caller:
    """Makes the calls of one request. Of `limits`, the attempts (per model) and the cooldown are used."""

    pool: Pool
    ledger: Ledger
    limits: LimitsConfig
    uniform: Callable[[], float] = field(default=random.random)

    async def call(self, model: str, spec: CallSpec) -> CallResult:
        """Ask `model`, again where that may help, then its fallbacks; models at rest only where all others failed.

        Raises: the last EngineError where all failed; BudgetExceeded; PoisonousRequest.
        """
        chain = _Chain(self, model, spec)
        for name in (model, *self.pool[model].config.fallbacks):
            if (result := await chain.ask(name)) is not None:
                return result
        for name in chain.passed_over:
            if (result := await chain.ask(name, is_last_resort=True)) is not None:
                return result
        assert chain.last_error is not None
        raise chain.last_error


class _Chain:
    """One call on its way from model to model."""

    def __init__(self, caller: Caller, first: str, spec: CallSpec) -> None:
        self.passed_over: dict[str, None] = {}
        """In order."""
        self.last_error: EngineError | None = None
        self._caller, self._first, self._spec = caller, first, spec
        self._num_tried: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._num_attempts = 0
        self._deaths: set[str] = set()
        """Replicas that died at work on this call."""

    async def ask(self, name: str, *, is_last_resort: bool = False) -> CallResult | None:
        """The reply of `name`, tried again where that may help. None where it failed, or was passed over as it rests.

        Raises: EngineError where the client has already seen a part of the reply; BudgetExceeded; PoisonousRequest.
        """
        member, limits = self._caller.pool[name], self._caller.limits
        num_tried = self._num_tried.get(name, 0)
        while num_tried < limits.max_attempts:
            permit = await self._permit(member, is_last_resort=is_last_resort)
            if permit is None:
                self.passed_over[name] = None
                break
            num_tried += 1
            self._num_attempts += 1
            forward = _Forward(self._spec.on_delta)
            try:
                with member.cooldown.observing(permit, limits.cooldown):
                    async with member.quarantine.turn() if self._deaths else nullcontext():
                        completion = await self._once(member, forward)
                return CallResult(
                    completion, member.codec.parse_answer(completion.text), name, self._num_attempts
                )
            except EngineError as e:
                self.last_error = e
                if forward.has_started:
                    raise
                self._check_deaths(e)
                self._not_before[name] = event_loop_time_s() + self._backoff_s(num_tried, e)
                if isinstance(e, EngineRefused | EngineTimeout) or _asks_too_long(e):
                    num_tried = limits.max_attempts
        self._num_tried[name] = num_tried
        return None

    def _check_deaths(self, error: EngineError) -> None:
        """Raises: PoisonousRequest where too many replicas died at work on this call."""
        if isinstance(error, ReplicaDied):
            self._deaths.add(error.replica)
        if len(self._deaths) >= MAX_DEATHS:
            raise PoisonousRequest(
                f"{len(self._deaths)} replicas died while they worked on this request, so it is not sent to another; change it"
            ) from error

    async def _permit(self, member: PoolMember, *, is_last_resort: bool) -> Permit | None:
        """Leave for the next try, given when it may be made; None where the model rests for longer than that."""
        member.cooldown.heed(self._caller.limits.cooldown)
        wait_s = max(0.0, self._not_before.get(member.config.name, 0.0) - event_loop_time_s())
        if not is_last_resort and member.cooldown.left_s() > wait_s:
            return None
        await asyncio.sleep(wait_s)
        return member.cooldown.insist() if is_last_resort else member.cooldown.ask()

    async def _once(self, member: PoolMember, forward: _Forward) -> Completion:
        config, spec = member.config, self._spec
        sampling = spec.sampling
        if sampling.max_tokens is None:
            sampling = sampling.model_copy(update={"max_tokens": config.max_tokens})
        prompt = spec.prompt_for(member)
        reservation = self._caller.ledger.reserve(
            config,
            prompt,
            sampling.max_tokens or config.max_tokens,
            stage=spec.stage,
            subtask=spec.subtask,
            attempt=self._num_attempts,
            passed_over=tuple(name for name in self.passed_over if name != config.name),
        )
        is_streamed = spec.on_delta is not None and member.codec.is_streamable
        call = EngineCall(
            messages=tuple(prompt.messages),
            sampling=sampling,
            adapter=spec.adapter if config.name == self._first else None,
            timeout_s=config.timeout_s,
        )
        request = _Request(member, prompt, call)
        return await _settled(
            reservation, request.stream(forward) if is_streamed else request.generate(), forward
        )

    def _backoff_s(self, attempt: int, error: EngineError) -> float:
        """Exponential with full jitter, or what the provider asked for."""
        asked = error.retry_after_s if isinstance(error, EngineUnavailable) else None
        if asked is not None:
            return asked
        return float(min(FIRST_BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S)) * self._caller.uniform()


class _Forward:
    """Hands pieces on and remembers whether any was: after that a call cannot be tried again unseen."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self.has_started = False
        self.told: Usage | None = None
        """The call's usage, as soon as the engine has told it."""
        self.num_bytes = 0
        self._on_delta = on_delta

    async def __call__(self, text: str) -> None:
        self.num_bytes += len(text.encode())
        if self._on_delta is not None and text:
            self.has_started = True
            await self._on_delta(text)


async def _settled(reservation: Reservation, work: Awaitable[Completion], forward: _Forward) -> Completion:
    try:
        completion = await work
    except BaseException as e:
        reservation.fail(e, received_bytes=forward.num_bytes, told=forward.told)
        raise
    reservation.settle(completion.usage, is_estimated=completion.is_usage_estimated, work=completion.work)
    return completion


def _asks_too_long(error: EngineError) -> bool:
    """The provider wants a wait so long that the next model is the better choice."""
    return isinstance(error, EngineUnavailable) and (error.retry_after_s or 0.0) > LONGEST_BACKOFF_S


@dataclass(frozen=True)
class _Request:
    """One request to one engine, bounded by the model's own timeout."""

    member: PoolMember
    prompt: Prompt
    call: EngineCall

    async def generate(self) -> Completion:
        async with self._bounded():
            return await self.member.engine.generate(self.call)

    async def stream(self, forward: _Forward) -> Completion:
        pieces: list[str] = []
        async with self._bounded() as limit, aclosing(self.member.engine.stream(self.call)) as deltas:
            async for delta in deltas:
                pieces.append(delta.text)
                if delta.usage is not None and not delta.is_usage_estimated:
                    forward.told = delta.usage
                with paused(limit):
                    await forward(delta.text)
                if delta.finish_reason is not None:
                    return Completion(
                        text="".join(pieces),
                        usage=forward.told or delta.usage or self._estimated(forward),
                        is_usage_estimated=forward.told is None,
                        finish_reason=delta.finish_reason,
                        work=delta.work,
                    )
        raise InvalidReply(f"the stream of {self.member.config.name} ended without a finish reason")

    def _estimated(self, forward: _Forward) -> Usage:
        return self.prompt.likely_usage(
            forward.num_bytes, self.call.sampling.max_tokens or self.member.config.max_tokens
        )

    @asynccontextmanager
    async def _bounded(self) -> AsyncGenerator[asyncio.Timeout, None]:
        """Ends the call at the model's timeout. A client's time, for which the limit must be `paused`, has the request's deadline.

        Raises: EngineTimeout then, EngineUnavailable where the engine's own work was cancelled without this task being so.
        """
        config, task = self.member.config, asyncio.current_task()
        try:
            async with asyncio.timeout(config.timeout_s) as limit:
                yield limit
        except TimeoutError as e:
            raise EngineTimeout(f"{config.name} did not end its reply within {config.timeout_s:g} s") from e
        except asyncio.CancelledError as e:
            if task is not None and task.cancelling():
                raise
            raise EngineUnavailable(f"{config.name} cancelled the call") from e
