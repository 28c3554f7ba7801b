"""One answer over one connection: cancelled when the client leaves, streamed with a heartbeat on request.

An HTTP status can be sent once only. So a stream commits to 200 with its first piece of text, its first
heartbeat or its end; an error before that is an ordinary HTTP error. A later error is an event in the shape
of the dialect, and the stream then ends without the dialect's last event (`[DONE]` in chat completions), so
that a client can tell a cut answer from a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TypeVar

from starlette.types import Receive, Send

T = TypeVar("T")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed the connection, or does not read what it is sent."""


async def run_with(
    companions: Sequence[Coroutine[object, object, None]], work: Coroutine[object, object, T]
) -> T:
    """The result of `work`, while `companions` run; one that raises stops `work` and waits for its end.

    Raises: the first error of `work` or of a companion.
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
    """Never returns. Raises: ClientGone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class EventStream:
    """The sending side of a stream of server-sent events."""

    def __init__(self, send: Send, heartbeat_s: float, heartbeat: bytes) -> None:
        self.is_committed = False
        """The status line is sent."""
        self._send, self._heartbeat_s, self._heartbeat = send, heartbeat_s, heartbeat
        self._lock = asyncio.Lock()
        self._is_idle = True

    async def write(self, events: bytes) -> None:
        """Sends `events`, after the status line if that is still due, and waits while the client is slow.

        It ignores a closed connection, which `raise_when_gone` notices too.
        """
        await self._write(events, is_last=False)

    async def end(self, events: bytes, within_s: float) -> None:
        """Sends the last events. Raises: ClientGone if the client does not read them `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                await self._write(events, is_last=True)
        except TimeoutError:
            raise ClientGone from None

    async def beat(self) -> None:
        """Sends a heartbeat whenever nothing else was sent for `heartbeat_s`. Never returns."""
        while True:
            self._is_idle = True
            await asyncio.sleep(self._heartbeat_s)
            if self._is_idle:
                await self.write(self._heartbeat)

    async def _write(self, events: bytes, *, is_last: bool) -> None:
        self._is_idle = False
        async with self._lock:
            with suppress(OSError):
                if not self.is_committed:
                    start = {"type": "http.response.start", "status": 200, "headers": list(_HEADERS)}
                    await self._send(start)
                    self.is_committed = True
                await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})
