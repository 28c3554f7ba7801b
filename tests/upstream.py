"""A faulty OpenAI-compatible provider on a loopback socket: answers every request with the same scripted bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Script:
    """What to send: a head, then each piece of the body with `gap_s` before it. `is_held` never closes the connection."""

    body: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    gap_s: float = 0.0
    is_held: bool = False
    content_length: int | None = None
    """None closes the connection at the end; more than is sent cuts the body."""


@dataclass
class Upstream:
    base_url: str
    script: Script = field(default_factory=Script)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests, with their lower-case headers as `_headers` and path as `_path`."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closed a held connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await _request(reader))
            self.asked.set()
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.script
        headers = {"content-type": "application/json", "connection": "close", **script.headers}
        if script.content_length is not None:
            headers["content-length"] = str(script.content_length)
        lines = [f"HTTP/1.1 {script.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        for piece in script.body:
            await writer.drain()
            await asyncio.sleep(script.gap_s)
            writer.write(piece)
        await writer.drain()
        if script.is_held:
            await reader.read()
            self.hung_up.set()


async def _request(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return {**body, "_headers": headers, "_path": first.split()[1]}


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream("")
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield upstream


def completion(**changes: Any) -> dict[str, Any]:
    """A valid chat completion with `changes` to its only choice; `usage` and `choices` are changed at the top."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    top = {name: changes.pop(name) for name in ("usage", "choices") if name in changes}
    return {**body, "choices": [{**choice, **changes}], **top}


def sse(*events: Any) -> list[bytes]:
    """One piece per event; texts are sent as they are."""
    return [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode() for event in events]


def chunk(text: str | None = None, finish_reason: str | None = None, **top: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}], **top}
