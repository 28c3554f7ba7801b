"""A faulty OpenAI-compatible provider on a loopback socket: scripted bytes, the same for every request or
chosen by it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing sends RST in place of FIN."""


@dataclass(frozen=True)
class Script:
    """What to send: a head, then each piece of the body with `gap_s` before it. `is_held` never closes the
    connection."""

    body: Iterable[bytes] = ()
    """May be endless."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    gap_s: float = 0.0
    is_held: bool = False
    is_reset: bool = False
    """Ends the connection with RST."""
    has_head: bool = True
    content_length: int | None = None
    """None closes the connection at the end; more than is sent cuts the body."""


@dataclass
class Upstream:
    base_url: str
    script: Script | Callable[[dict[str, Any]], Script] = field(default_factory=Script)
    """What to answer, or what decides it from a request's body."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests, with their lower-case headers as `_headers` and path as `_path`."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closed a held connection."""
    num_open: int = 0
    """Connections with a request under way."""

    _handlers: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    async def close(self) -> None:
        """Ends the connections that are still open, so that none outlives its event loop."""
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        self.num_open += 1
        try:
            request = await _request(reader)
            self.requests.append(request)
            self.asked.set()
            await self._answer(
                self.script if isinstance(self.script, Script) else self.script(request), reader, writer
            )
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            self.num_open -= 1
            writer.close()

    async def _answer(
        self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if script.has_head:
            writer.write(_head(script))
        for piece in script.body:
            await writer.drain()
            await asyncio.sleep(script.gap_s)
            writer.write(piece)
        await writer.drain()
        if script.is_held:
            await reader.read()
            self.hung_up.set()
        if script.is_reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def _head(script: Script) -> bytes:
    headers = {"content-type": "application/json", "connection": "close", **script.headers}
    if script.content_length is not None:
        headers["content-length"] = str(script.content_length)
    return "\r\n".join(
        [f"HTTP/1.1 {script.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    ).encode()


async def _request(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
    return {**body, "_headers": headers, "_path": first.split()[1]}


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream("")
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        try:
            yield upstream
        finally:
            await upstream.close()


@contextmanager
def upstream_in_thread() -> Iterator[Upstream]:
    """An upstream for clients in other processes. Any thread may read its counts, none may await its
    events."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="upstream", daemon=True)
    thread.start()
    upstream = Upstream("")
    try:
        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(upstream.serve, "127.0.0.1", 0), loop
        )
        server = starting.result(timeout=10)
        upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield upstream
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(upstream.close(), loop).result(timeout=10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)


def completion(**changes: Any) -> dict[str, Any]:
    """A valid chat completion with `changes` to its only choice; `usage` and `choices` are changed at the
    top."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    top = {name: changes.pop(name) for name in ("usage", "choices") if name in changes}
    return {**body, "choices": [{**choice, **changes}], **top}


def sse(*events: Any) -> list[bytes]:
    """One piece per event; texts are sent as they are."""
    return [
        f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode() for event in events
    ]


def chunk(text: str | None = None, finish_reason: str | None = None, **top: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}],
        **top,
    }


def http_chunks(pieces: Iterable[bytes], *, is_ended: bool = True) -> list[bytes]:
    """`pieces` in HTTP/1.1 chunked coding, for `transfer-encoding: chunked`; not `is_ended` leaves out the
    last, empty chunk."""
    return [
        *(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces),
        *[b"0\r\n\r\n"] * is_ended,
    ]
