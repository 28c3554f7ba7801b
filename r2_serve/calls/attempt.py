"""One request to one engine: bounded by the model's timeout, and settled in the ledger however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from r2_serve.calls.ledger import Reservation
from r2_serve.calls.pool import PoolMember
from r2_serve.engines.timing import paused
from r2_serve.errors import EngineTimeout, EngineUnavailable, InvalidReply
from r2_serve.types import Completion, Delta, EngineCall, OnDelta, Usage


@dataclass
class Attempt:
    """One attempt at one call. With `on_delta` the reply is streamed to it."""

    member: PoolMember
    call: EngineCall
    reservation: Reservation
    on_delta: OnDelta | None
    _received_bytes: int = 0
    _reported: Usage | None = None
    """Usage that the engine has reported so far in a stream."""

    async def run(self) -> Completion:
        """The reply. Raises: EngineError, and what `on_delta` raises."""
        try:
            async with self._bounded() as limit:
                completion = await (
                    self.member.engine.generate(self.call)
                    if self.on_delta is None
                    else self._stream(self.on_delta, limit)
                )
        except BaseException as e:
            self.reservation.fail(e, received_bytes=self._received_bytes, reported=self._reported)
            raise
        is_estimated = completion.is_usage_estimated
        self.reservation.settle(completion.usage, is_estimated=is_estimated, work=completion.work)
        if not is_estimated:
            self.reservation.prompt.learn(completion.usage)
        return completion

    async def _stream(self, on_delta: OnDelta, limit: asyncio.Timeout) -> Completion:
        """The reply, given to `on_delta` in pieces. Those without an answer are held until the next that has
        one, so that a reply which fails before its first word can be asked for again.
        """
        pieces: list[str] = []
        held: list[Delta] = []
        async with aclosing(self.member.engine.stream(self.call)) as deltas:
            async for delta in deltas:
                pieces.append(delta.text)
                self._received_bytes += delta.num_bytes
                if delta.usage is not None and not delta.is_usage_estimated:
                    self._reported = delta.usage
                if is_shown := delta.finish_reason is None and bool(delta.text or delta.body):
                    held.append(delta)
                if (is_shown and delta.num_bytes) or delta.finish_reason is not None:
                    with paused(limit):
                        for piece in held:
                            await on_delta(piece)
                    held.clear()
                if delta.finish_reason is not None:
                    estimate = delta.usage or self.reservation.likely_usage(self._received_bytes)
                    return Completion(
                        text="".join(pieces),
                        usage=self._reported or estimate,
                        is_usage_estimated=self._reported is None,
                        finish_reason=delta.finish_reason,
                        work=delta.work,
                        body=delta.body,
                    )
        raise InvalidReply(f"the stream of {self.member.config.name} ended without a finish reason")

    @asynccontextmanager
    async def _bounded(self) -> AsyncGenerator[asyncio.Timeout, None]:
        """End the call at the model's timeout, which must be `paused` while the client takes a piece.

        Raises: EngineTimeout then; EngineUnavailable if the engine cancelled its work but this task goes on.
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
