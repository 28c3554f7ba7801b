"""`Batch` in real time: the scripted engine takes as long as a real one would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from r2_serve.config import SpeedConfig
from r2_serve.engines.batching import Batch


class BatchPace:
    """Holds each call of one engine for as long as its batch takes. Bound to the loop of its first call."""

    def __init__(self, speed: SpeedConfig) -> None:
        self._batch = Batch(speed)
        self._ends: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def reply(self, prompt_tokens: int, reply_tokens: int) -> None:
        """Returns when the reply is whole. A cancelled call frees its place."""
        async for _ in self._held(prompt_tokens, reply_tokens, lambda _: None):
            pass

    async def tokens(self, prompt_tokens: int, reply_tokens: int) -> AsyncGenerator[int, None]:
        """The number of tokens written so far, each time there is one more; the last is `reply_tokens`."""
        num_given = 0

        def next_token_s(sequence: int) -> float:
            written = self._batch.num_decoded(_now_s(), sequence)
            return (max(num_given + 1 - written, 0.0) + 1e-6) / self._batch.tokens_per_s()

        async with aclosing(self._held(prompt_tokens, reply_tokens, next_token_s)) as looks:
            async for sequence in looks:
                while num_given + 1 <= min(self._batch.num_decoded(_now_s(), sequence), reply_tokens):
                    num_given += 1
                    yield num_given
        for number in range(num_given + 1, reply_tokens + 1):
            yield number

    async def _held(
        self, prompt_tokens: int, reply_tokens: int, wake_s: Callable[[int], float | None]
    ) -> AsyncGenerator[int, None]:
        """The call's sequence, as often as `wake_s` asks for it, until it has ended."""
        sequence = self._batch.arrive(_now_s(), prompt_tokens, reply_tokens)
        end = self._ends[sequence] = asyncio.get_running_loop().create_future()
        self._tick()
        try:
            while not end.done():
                await asyncio.wait([end], timeout=wake_s(sequence))
                self._tick()
                yield sequence
        finally:
            if self._ends.pop(sequence, None) is not None:
                self._batch.leave(_now_s(), sequence)
                self._tick()

    def _tick(self) -> None:
        """Ends what has ended, and sets the timer for the next."""
        for finished in self._batch.advance(_now_s()):
            if (end := self._ends.pop(finished.sequence, None)) is not None and not end.done():
                end.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        next_s = self._batch.next_event_s()
        self._timer = None if next_s is None else asyncio.get_running_loop().call_at(next_s, self._tick)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
