"""One answer over one connection: cancelled when the client leaves, streamed with a heartbeat where asked.

An HTTP status can be sent once. So a stream commits to 200 only with its first piece of text, its first heartbeat or
its end; an error before that is an ordinary HTTP error. After it, an error is an event `data: {"error": {...}}`, and the
stream ends without `[DONE]`, by which a client tells a cut answer from a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TypeVar

from starlette.types import Receive, Send

T = TypeVar("T")
HEARTBEAT = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed the connection, or does not read what it is sent: nobody is left to answer."""


async def beside(
    companions: Sequence[Coroutine[object, object, None]], work: Coroutine[object, object, T]
) -> T:
    """The result of `work`; `companions` run until it is there. One that raises stops `work`, and waits for its end.

    Raises: what `work` or a companion raised, the first of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(companion) for companion in companions]
            result = await work
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from e.exceptions[0].__cause__
    return result


async def raise_when_gone(receive: Receive) -> None:
    """Returns never. Raises: ClientGone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class EventStream:
    """The sending side of a stream of server-sent events."""

    def __init__(self, send: Send, heartbeat_s: float) -> None:
        self.is_committed = False
        """The status line is out."""
        self._send, self._heartbeat_s = send, heartbeat_s
        self._lock = asyncio.Lock()
        self._is_idle = True

    async def write(self, events: bytes) -> None:
        """Sends, after the status line where that is still due, and waits while the client is slow.

        A connection found closed is left to `raise_when_gone`, which knows of it too.
        """
        await self._write(events, is_last=False)

    async def end(self, events: bytes, within_s: float) -> None:
        """Sends the last of it. Raises: ClientGone where the client has not made room for that in time: it may never read."""
        try:
            async with asyncio.timeout(within_s):
                await self._write(events, is_last=True)
        except TimeoutError:
            raise ClientGone from None

    async def beat(self) -> None:
        """Returns never: sends a comment for each `heartbeat_s` in which nothing else was sent."""
        while True:
            self._is_idle = True
            await asyncio.sleep(self._heartbeat_s)
            if self._is_idle:
                await self.write(HEARTBEAT)

    async def _write(self, events: bytes, *, is_last: bool) -> None:
        self._is_idle = False
        async with self._lock:
            with suppress(OSError):
                if not self.is_committed:
                    await self._send(
                        {"type": "http.response.start", "status": 200, "headers": list(_HEADERS)}
                    )
                    self.is_committed = True
                await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})
