"""`GET /v1/r2/events`: what happens to queries, as server-sent events while it happens.

It shows the queries of all router replicas, and before them the latest ones if `recent` asks for some. Which
ones, and with which texts, depends on the key: one with limits sees its own queries; one without limits sees
all, but texts of other keys only if the operator allows it (`server.events.texts`). An endpoint without keys
shows everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from r2_serve.config import ServerConfig
from r2_serve.dialects.chat import CHAT
from r2_serve.dialects.wire import event
from r2_serve.errors import InvalidRequest
from r2_serve.http.edge import Exchange
from r2_serve.http.keys import ClientKey
from r2_serve.http.redaction import redacted
from r2_serve.http.sse import EventStream, raise_when_gone, run_with
from r2_serve.router.backend import RouterBackend
from r2_serve.router.events import Audience, Follower
from r2_serve.router.past import events_of
from r2_serve.types import Event, Json, Trace


class OtherReplicas(Protocol):
    """The router replicas beside this one."""

    def watched(self) -> AbstractContextManager[None]:
        """While this is open, their events come to the event bus of this process."""
        ...

    async def latest(self) -> tuple[list[Trace], list[Trace]]:
        """Their latest finished queries, and those being answered. Later events come by the bus, no earlier
        ones. It waits for seconds at most."""
        ...


class NoOthers:
    """The only router replica."""

    def watched(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def latest(self) -> tuple[list[Trace], list[Trace]]:
        return [], []


def event_json(happened: Event, redact: Callable[[str], str]) -> Json:
    """An event as JSON, without the fields that its kind does not have."""
    return redacted(happened.model_dump(mode="json", exclude_none=True), redact, spared="answer")


@dataclass(frozen=True)
class Watching:
    """The route, as an ASGI application."""

    backend: RouterBackend
    server: ServerConfig
    others: OtherReplicas = field(default_factory=NoOthers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, recent = Exchange.of(scope), _recent(QueryParams(scope["query_string"]))
        stream = EventStream(send, self.server.heartbeat_s, CHAT.heartbeat)
        audience = self._audience(exchange.key)

        def written(happened: Event) -> bytes:
            shown = happened.shortened() if audience.may_read(happened) else happened.without_texts()
            return event(event_json(shown, exchange.redact), f"r2.{shown.kind}")

        with self.backend.events.following(audience, written) as follower, self.others.watched():
            await stream.write(_note("watching"))
            companions = [raise_when_gone(receive), stream.beat()]
            await run_with(companions, self._send_all(follower, stream, audience, written, recent))

    def _audience(self, key: ClientKey | None) -> Audience:
        if key is None:
            return Audience(None, None)
        sees = key.name if key.is_restricted else None
        return Audience(sees, None if self.server.events.texts else key.name)

    async def _send_all(
        self,
        follower: Follower,
        stream: EventStream,
        audience: Audience,
        written: Callable[[Event], bytes],
        recent: int,
    ) -> None:
        if recent:
            for events in await self._latest(follower, audience, recent):
                await stream.write(b"".join(map(written, events)))
                await asyncio.sleep(0)  # queries go first
            await stream.write(_note("live"))
        while True:
            news, num_lost = await follower.news()
            lost = _note("lost", events=num_lost) if num_lost else b""
            await stream.write(lost + news)

    async def _latest(self, follower: Follower, audience: Audience, recent: int) -> list[list[Event]]:
        """The events of each of the latest queries, the oldest first. What follows goes on from there."""
        past, running = await self.others.latest()
        follower.skip()
        bus = self.backend.events
        finished = _seen(past + bus.past.traces(), audience)[-recent:]
        running = _seen(running + bus.running(), audience)
        return [events_of(trace) for trace in finished] + [
            events_of(trace, is_over=False) for trace in running
        ]


def _seen(traces: Iterable[Trace], audience: Audience) -> list[Trace]:
    """The queries that the audience may see, each once, in the order in which they came."""
    found = {trace.task: trace for trace in traces if audience.sees in (None, trace.client)}
    return sorted(found.values(), key=lambda trace: trace.began_s)


def _recent(params: QueryParams) -> int:
    """Raises: InvalidRequest."""
    given = params.get("recent", "0")
    if not given.isdecimal() or len(given) > 9:
        raise InvalidRequest(f"recent is a number of queries from 0, got {given[:20]!r}", param="recent")
    return int(given)


def _note(kind: str, **fields: object) -> bytes:
    """An event about the stream itself."""
    return event({"version": 1, "kind": kind, **fields}, f"r2.{kind}")
