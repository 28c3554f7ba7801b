"""One model call as the router makes it: reserved, bounded in time, retried, passed on to fallbacks, settled.

The only retry loop of the project. Hosted clients are told not to retry, Ray Serve never does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from r2_serve.config import ModelConfig
from r2_serve.errors import EngineError, EngineRefused, EngineUnavailable, InvalidReply
from r2_serve.ledger import Ledger, Reservation
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import CallStage, Completion, Engine, Message, Sampling, Usage

OnDelta = Callable[[str], Awaitable[None]]
"""Takes a piece of the final answer's text as it comes."""
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 4.0


@dataclass(frozen=True)
class PoolMember:
    """A model that can be called."""

    config: ModelConfig
    engine: Engine

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
    """Makes the calls of one request. `max_attempts` is per model."""

    pool: Pool
    ledger: Ledger
    max_attempts: int = 2
    uniform: Callable[[], float] = field(default=random.random)

    async def call(self, model: str, spec: CallSpec) -> CallResult:
        """Ask `model`, again where that may help, then its fallbacks.

        Raises: the last EngineError where all failed; BudgetExceeded.
        """
        num_attempts = 0
        last_error: EngineError | None = None
        for name in (model, *self.pool[model].config.fallbacks):
            for attempt in range(1, self.max_attempts + 1):
                num_attempts += 1
                forwarded = _Forward(spec.on_delta)
                try:
                    adapter = spec.adapter if name == model else None
                    completion = await self._once(self.pool[name], spec, adapter, num_attempts, forwarded)
                    return CallResult(completion, self.pool[name].codec.parse_answer(completion.text), name, num_attempts)
                except EngineError as e:
                    last_error = e
                    if forwarded.has_started:
                        raise
                    if isinstance(e, EngineRefused) or attempt == self.max_attempts or _asks_too_long(e):
                        break
                    await asyncio.sleep(self._backoff_s(attempt, e))
        assert last_error is not None
        raise last_error

    async def _once(self, member: PoolMember, spec: CallSpec, adapter: str | None, attempt: int, forward: _Forward) -> Completion:
        config = member.config
        sampling = spec.sampling
        if sampling.max_tokens is None:
            sampling = sampling.model_copy(update={"max_tokens": config.max_tokens})
        messages = spec.render(member.codec)
        reservation = self.ledger.reserve(
            config, messages, sampling.max_tokens or config.max_tokens, stage=spec.stage, subtask=spec.subtask, attempt=attempt
        )
        is_streamed = spec.on_delta is not None and member.codec.is_streamable
        request = _Request(member, messages, sampling, adapter)
        return await _settled(reservation, request.stream(forward) if is_streamed else request.generate(), forward)

    def _backoff_s(self, attempt: int, error: EngineError) -> float:
        """Exponential with full jitter, or what the provider asked for."""
        asked = error.retry_after_s if isinstance(error, EngineUnavailable) else None
        if asked is not None:
            return asked
        return float(min(FIRST_BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S)) * self.uniform()


class _Forward:
    """Hands pieces on and remembers whether any was: after that a call cannot be tried again unseen."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self.has_started = False
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
        reservation.fail(e, received_bytes=forward.num_bytes)
        raise
    reservation.settle(completion.usage)
    return completion


def _asks_too_long(error: EngineError) -> bool:
    """The provider wants a wait so long that the next model is the better choice."""
    return isinstance(error, EngineUnavailable) and (error.retry_after_s or 0.0) > LONGEST_BACKOFF_S


@dataclass(frozen=True)
class _Request:
    """One request to one engine, bounded by the model's own timeout."""

    member: PoolMember
    messages: Sequence[Message]
    sampling: Sampling
    adapter: str | None

    async def generate(self) -> Completion:
        async with self._bounded() as timeout_s:
            return await self.member.engine.generate(self.messages, self.sampling, adapter=self.adapter, timeout_s=timeout_s)

    async def stream(self, forward: _Forward) -> Completion:
        pieces: list[str] = []
        async with self._bounded() as timeout_s:
            replies = self.member.engine.stream(self.messages, self.sampling, adapter=self.adapter, timeout_s=timeout_s)
            async with aclosing(replies) as deltas:
                async for delta in deltas:
                    pieces.append(delta.text)
                    await forward(delta.text)
                    if delta.finish_reason is not None:
                        return Completion(text="".join(pieces), usage=delta.usage or Usage(), finish_reason=delta.finish_reason)
        raise InvalidReply(f"the stream of {self.member.config.name} ended without a finish reason")

    @asynccontextmanager
    async def _bounded(self) -> AsyncGenerator[float, None]:
        """Ends the call at the model's timeout, which it yields.

        Raises: EngineUnavailable then, and where the engine's own work was cancelled without this task being so.
        """
        config, task = self.member.config, asyncio.current_task()
        try:
            async with asyncio.timeout(config.timeout_s):
                yield config.timeout_s
        except TimeoutError as e:
            raise EngineUnavailable(f"{config.name} did not end its reply within {config.timeout_s:g} s") from e
        except asyncio.CancelledError as e:
            if task is not None and task.cancelling():
                raise
            raise EngineUnavailable(f"{config.name} cancelled the call") from e
