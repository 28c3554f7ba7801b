"""A scripted provider that keeps its own bill: what each request really cost, and whether it told the client.

It speaks chat completions on a loopback socket with connections that are kept. A request names itself in its
last message (`<<17>>`); a seed and that name decide what becomes of it, so that every run is the same. Its
arithmetic is its own: fractions of a USD, from prices in USD per token.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Fault = Literal[
    "rate limited",
    "refused",
    "broken",
    "cut",
    "cut after usage",
    "silent",
    "no usage",
    "nonsense",
    "error event",
]
Telling = Literal["openai", "deepseek", "anthropic", "groq", "gemini"]
WEIGHTS: dict[Fault | None, float] = {
    None: 80,
    "rate limited": 5,
    "refused": 3,
    "broken": 2,
    "cut": 3,
    "cut after usage": 1.3,
    "no usage": 3,
    "nonsense": 1,
    "error event": 1.7,
}
SILENT_MODEL = "silent"
"""The model that works and never answers, so that only a time-out ends its calls."""
NAME = re.compile(r"<<(\d+)>>")
STATUSES: dict[Fault | None, int] = {"rate limited": 429, "refused": 400, "broken": 500}
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class PriceList:
    """USD per million tokens, as texts; a tier holds for all tokens of a prompt longer than `tier_over`."""

    prompt: str
    reply: str
    cached_read: str | None = None
    cached_write: str | None = None
    thought: str | None = None
    tier_over: int | None = None
    tier_factor: int = 1


@dataclass(frozen=True)
class Sold:
    """The tokens of one request."""

    prompt: int
    reply: int
    cached_read: int = 0
    cached_write: int = 0
    thought: int = 0

    def usd(self, prices: PriceList) -> Fraction:
        each = {
            prices.prompt: self.prompt - self.cached_read - self.cached_write,
            prices.reply: self.reply - self.thought,
        }
        total = sum((Fraction(price) * tokens for price, tokens in each.items()), Fraction(0))
        total += Fraction(prices.cached_read or prices.prompt) * self.cached_read
        total += Fraction(prices.cached_write or prices.prompt) * self.cached_write
        total += Fraction(prices.thought or prices.reply) * self.thought
        is_long = prices.tier_over is not None and self.prompt > prices.tier_over
        return total * (prices.tier_factor if is_long else 1) / 10**6


@dataclass(frozen=True)
class Line:
    """One line of the bill."""

    request: int
    model: str
    usd: Fraction
    is_told: bool
    """Whether the client got the usage of it."""
    is_free: bool
    """Whether nothing was done, so that nothing is due."""


@dataclass
class BillingProvider:
    prices: dict[str, PriceList]
    seed: int
    bill: list[Line] = field(default_factory=list)
    base_url: str = ""
    _tries: dict[tuple[int, str], int] = field(default_factory=dict)
    _silent: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._silent.add(task)
        try:
            while (request := await _read(reader)) is not None:
                if not await self._answer(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._silent.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in tuple(self._silent):
            task.cancel()
        await asyncio.gather(*self._silent, return_exceptions=True)

    async def _answer(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection is kept."""
        text = "".join(str(message.get("content")) for message in request["messages"])
        names = NAME.findall(text)
        model, number = request["model"], int(names[-1])
        number_of_try = self._tries[number, model] = self._tries.get((number, model), 0) + 1
        dice = random.Random(f"{self.seed} {number} {model} {number_of_try}")
        fault = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        fault = "silent" if model == SILENT_MODEL else fault
        is_streamed = bool(request.get("stream"))
        if fault in ("cut", "cut after usage", "error event") and not is_streamed:
            fault = None
        sold, telling = self._sold(request, dice), dice.choice(_TELLINGS)
        is_told = fault in (None, "cut after usage")
        is_free = fault in ("rate limited", "refused")
        usd = Fraction(0) if is_free else sold.usd(self.prices[model])
        self.bill.append(Line(number, model, usd, is_told, is_free))
        if fault == "silent":
            await reader.read()
            return False
        if fault in STATUSES or fault == "nonsense":
            await _send(writer, STATUSES.get(fault, 200), _error(fault))
            return True
        usage = _usage(sold, telling) if is_told else None
        if not is_streamed:
            await _send(writer, 200, json.dumps(_completion(request, dice, usage)).encode())
            return True
        is_kept = fault not in ("cut", "cut after usage", "error event")
        await _stream(writer, list(_events(request, dice, usage, telling, fault)), is_kept=is_kept)
        return is_kept

    def _sold(self, request: dict[str, Any], dice: random.Random) -> Sold:
        """Tokens by the length of what is sent, with a part of it read from the cache or written to it."""
        size = len(json.dumps([request["messages"], request.get("tools")]))
        prompt = size // BYTES_PER_TOKEN + dice.randrange(1, 20)
        read = prompt * 9 // 10 if dice.random() < 0.3 else 0
        written = (prompt - read) // 2 if dice.random() < 0.2 else 0
        thought = dice.randrange(300) if dice.random() < 0.3 else 0
        shown = dice.randrange(1, 60) * int(request.get("n") or 1)
        return Sold(prompt, shown + thought, read, written, thought)


_TELLINGS: tuple[Telling, ...] = ("openai", "deepseek", "anthropic", "groq", "gemini")


def _usage(sold: Sold, telling: Telling) -> dict[str, Any]:
    """The usage as each kind of provider words it."""
    usage: dict[str, Any] = {"prompt_tokens": sold.prompt, "completion_tokens": sold.reply}
    usage["completion_tokens_details"] = {"reasoning_tokens": sold.thought}
    if telling in ("openai", "groq"):
        details = {"cached_tokens": sold.cached_read, "cache_write_tokens": sold.cached_write}
        return {**usage, "prompt_tokens_details": details}
    if telling == "deepseek":
        usage["prompt_cache_hit_tokens"] = sold.cached_read
        return {**usage, "prompt_tokens_details": {"cache_write_tokens": sold.cached_write}}
    if telling == "anthropic":
        return {
            **usage,
            "cache_read_input_tokens": sold.cached_read,
            "cache_creation_input_tokens": sold.cached_write,
        }
    usage |= {"completion_tokens": sold.reply - sold.thought, "total_tokens": sold.prompt + sold.reply}
    details = {"cached_tokens": sold.cached_read, "cache_write_tokens": sold.cached_write}
    return {**usage, "prompt_tokens_details": details}


def _message(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The reply's message and finish reason: a tool call where tools are offered."""
    if not request.get("tools"):
        return {"role": "assistant", "content": "well " * 20}, "stop"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}, "tool_calls"


def _completion(request: dict[str, Any], dice: random.Random, usage: object) -> dict[str, Any]:
    message, reason = _message(request)
    choices = [
        {"index": i, "message": message, "finish_reason": reason} for i in range(int(request.get("n") or 1))
    ]
    head = {"id": f"x-{dice.random()}", "object": "chat.completion", "created": 1, "model": request["model"]}
    return {**head, "choices": choices, "usage": usage}


def _events(
    request: dict[str, Any],
    dice: random.Random,
    usage: dict[str, Any] | None,
    telling: Telling,
    fault: object,
) -> Iterator[str]:
    message, reason = _message(request)
    indices = range(int(request.get("n") or 1))
    for i in indices:
        yield json.dumps({"id": "x", "choices": [{"index": i, "delta": message, "finish_reason": None}]})
    if fault == "cut":
        return
    if fault == "error event":
        yield json.dumps({"error": {"message": "it broke", "type": "server_error"}})
        return
    told = {"x_groq": {"usage": usage}} if telling == "groq" else {"usage": usage}
    if fault == "cut after usage":
        yield json.dumps({"id": "x", "choices": [], **told})
        return
    for i in indices:
        yield json.dumps({"id": "x", "choices": [{"index": i, "delta": {}, "finish_reason": reason}]})
    if usage is not None:
        yield json.dumps({"id": "x", "choices": [], **told})
    yield "[DONE]"


def _error(fault: object) -> bytes:
    if fault == "nonsense":
        return b"<html>"
    return json.dumps({"error": {"message": str(fault), "type": "error"}}).encode()


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    with suppress(asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        body: dict[str, Any] = json.loads(await reader.readexactly(int(length[1])))
        return body
    return None


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    waits = "retry-after: 0.001\r\n" if status == 429 else ""
    writer.write(f"{head}{waits}\r\n".encode() + body)
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, events: list[str], *, is_kept: bool) -> None:
    """The events in one body with a length, so that the connection can be kept."""
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    head = f"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n"
    head += "\r\n" if is_kept else "connection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


@asynccontextmanager
async def billing_provider(prices: dict[str, PriceList], seed: int) -> AsyncIterator[BillingProvider]:
    provider = BillingProvider(prices, seed)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=2**20)
    provider.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        try:
            yield provider
        finally:
            await provider.close()
