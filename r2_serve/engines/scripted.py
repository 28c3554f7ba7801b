"""The scripted engine: replies come from a list or a function, at a fixed delay or a real engine's pace.

It serves tests, dry runs, benchmarks and autoscaling experiments. Its tokens are words: usage, `max_tokens`
and streaming count words.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Self

from r2_serve.config import ScriptedEngineConfig, SpeedConfig
from r2_serve.engines.named_adapters import NamedAdapters
from r2_serve.engines.pacing import BatchPace
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.errors import ConfigError, EngineTimeout
from r2_serve.types import Completion, Delta, EngineCall, Message, Sampling, Usage

Reply = str | Completion | Exception
"""A text (cut to `max_tokens` words and at stop strings), a whole completion, or an exception to raise."""
ReplyFunction = Callable[[Sequence[Message], Sampling], Reply]
Sleep = Callable[[float], Awaitable[object]]

_WORD = re.compile(r"\s*\S+")
_PLACE = re.compile(r"\{(adapter|asked|prompt|words|json:(\w+))\}")
_NUM_WORDS = re.compile(r"(\d{1,6}) words")


class ScriptedEngine:
    """Gives its replies in turn, again from the first after the last, or by a function. `calls` lists all.

    `ScriptedEngineConfig` documents the placeholders in a listed text. A call takes `delay_s`, which a stream
    spreads over its words and `sleep` waits for, or the time by `speed`. A call that would take longer than
    its `timeout_s` fails at that time. An engine made in code takes any adapter until one is loaded. A prompt
    that holds `dies_on` kills the process.
    """

    def __init__(
        self,
        replies: Sequence[Reply] | ReplyFunction = ("ok",),
        *,
        delay_s: float = 0.0,
        speed: SpeedConfig | None = None,
        sleep: Sleep = asyncio.sleep,
        dies_on: str | None = None,
    ) -> None:
        if not callable(replies) and not replies:
            raise ValueError("a scripted engine needs at least one reply")
        self.calls: list[EngineCall] = []
        self._replies = replies
        self._delay_s = delay_s
        self._pace = BatchPace(speed) if speed is not None else None
        self._sleep = sleep
        self._dies_on = dies_on
        self._adapters: NamedAdapters[str] | None = None

    @classmethod
    def from_config(cls, config: ScriptedEngineConfig) -> Self:
        """An engine that knows the adapters of `config` and no others. It takes the speed's `start_s`."""
        engine = cls(config.replies, delay_s=config.delay_s, speed=config.speed, dies_on=config.dies_on)
        engine._adapters = NamedAdapters()
        for name, path in config.adapters.items():
            engine._add_adapter(name, path)
        if config.speed is not None:
            time.sleep(config.speed.start_s)
        return engine

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises: ConfigError if the name is taken or `path` is no directory."""
        self._add_adapter(name, path)

    async def unload_adapter(self, name: str) -> None:
        """Raises: EngineRefused if the name is unknown."""
        if self._adapters is not None:
            self._adapters.pop(name)

    async def check_health(self) -> None:
        """Does nothing: this engine is always healthy."""

    async def aclose(self) -> None:
        """Does nothing: there is nothing to stop."""

    def _add_adapter(self, name: str, path: str) -> None:
        if self._adapters is None:
            self._adapters = NamedAdapters()
        self._adapters.check_free(name)
        if not Path(path).is_dir():
            raise ConfigError(f"adapter {name!r}: {path!r} is no directory")
        self._adapters.add(name, path)

    async def generate(self, call: EngineCall) -> Completion:
        """The next reply. Raises: the script's exception; EngineTimeout after `timeout_s`."""
        reply = self._next_reply(call)
        deadline = Deadline(call.timeout_s)
        if self._pace is None:
            await self._wait(self._delay_s, deadline)
            return _completion(reply, call)
        completion = _completion(reply, call)
        async with bounded(deadline.at):
            await self._pace.reply(completion.usage.prompt_tokens, completion.usage.completion_tokens)
        return completion

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The next reply, word by word; a scripted exception is raised before the first word."""
        reply = self._next_reply(call)
        deadline = Deadline(call.timeout_s)
        if isinstance(reply, Exception):
            await self._wait(self._delay_s, deadline)
        completion = _completion(reply, call)
        async with aclosing(
            self._paced(_pieces(completion.text), completion.usage.prompt_tokens, deadline)
        ) as pieces:
            async for piece in pieces:
                yield Delta(text=piece)
        yield Delta(finish_reason=completion.finish_reason, usage=completion.usage)

    async def _paced(
        self, pieces: Sequence[str], prompt_tokens: int, deadline: Deadline
    ) -> AsyncGenerator[str, None]:
        """Each piece when it is due."""
        if self._pace is None:
            for piece in pieces:
                await self._wait(self._delay_s / len(pieces), deadline)
                with deadline.paused():
                    yield piece
            return
        async with aclosing(self._pace.tokens(prompt_tokens, len(pieces))) as counts:
            for piece in pieces:
                async with bounded(deadline.at):
                    await anext(counts)
                with deadline.paused():
                    yield piece

    def _next_reply(self, call: EngineCall) -> Reply:
        if call.adapter is not None and self._adapters is not None:
            self._adapters.get(call.adapter)
        position = len(self.calls)
        self.calls.append(call)
        if self._dies_on is not None and any(self._dies_on in message.text for message in call.messages):
            os.kill(os.getpid(), signal.SIGKILL)
        if callable(self._replies):
            return self._replies(call.messages, call.sampling)
        reply = self._replies[position % len(self._replies)]
        if not isinstance(reply, str):
            return reply
        return _filled(reply, call)

    async def _wait(self, delay_s: float, deadline: Deadline) -> None:
        left_s = None if deadline.at is None else deadline.at - asyncio.get_running_loop().time()
        if left_s is not None and delay_s > left_s:
            await self._sleep(max(left_s, 0.0))
            raise EngineTimeout("the scripted model did not answer in time")
        if delay_s > 0:
            async with bounded(deadline.at):
                await self._sleep(delay_s)


def _filled(text: str, call: EngineCall) -> str:
    """`text` with its placeholders filled in."""
    prompt = call.messages[-1].text

    def value(place: re.Match[str]) -> str:
        if place[2] is not None:
            return _dumped(held[place[2]] for held in _json_objects(prompt) if place[2] in held)
        return {
            "adapter": lambda: call.adapter or "base",
            "prompt": lambda: prompt,
            "words": words,
            "asked": asked,
        }[place[1]]()

    def words() -> str:
        return _as_many_words(prompt)

    def asked() -> str:
        schema = call.sampling.json_schema
        if schema is None:
            return words()
        return _dumped(held for held in _json_objects(prompt) if held.keys() >= set(schema["required"]))

    return _PLACE.sub(value, text)


def _as_many_words(prompt: str) -> str:
    """The number of words that the last "N words" in `prompt` asks for; one word if there is none."""
    asked = _NUM_WORDS.findall(prompt)
    return " ".join(["word"] * int(asked[-1] if asked else 1))


def _dumped(found: Iterator[object]) -> str:
    """The first as JSON; empty if there is none."""
    return next((json.dumps(value) for value in found), "")


def _json_objects(text: str) -> Iterator[dict[str, object]]:
    """All JSON objects in `text`, nested ones too, in the order in which they begin."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        with suppress(ValueError, RecursionError):
            yield decoder.raw_decode(text, start)[0]
        start = text.find("{", start + 1)


def _completion(reply: Reply, call: EngineCall) -> Completion:
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, Completion):
        return reply
    text = min((reply.partition(stop)[0] for stop in call.sampling.stop), key=len, default=reply)
    pieces, max_tokens = _pieces(text), call.sampling.max_tokens
    is_cut = max_tokens is not None and len(pieces) > max_tokens
    if is_cut:
        pieces = pieces[:max_tokens]
        text = "".join(pieces)
    usage = Usage(
        prompt_tokens=sum(len(m.text.split()) for m in call.messages), completion_tokens=len(text.split())
    )
    return Completion(text=text, usage=usage, finish_reason="length" if is_cut else "stop")


def _pieces(text: str) -> list[str]:
    """`text` in words, each with the space before it; space at the end goes with the last."""
    words: list[str] = _WORD.findall(text)
    rest = text[sum(map(len, words)) :]
    return [*words[:-1], words[-1] + rest] if words else [text] * bool(text)
