"""`GET /v1/r2/events`: what happens to queries, as server-sent events while it happens.

It shows the queries of the router replica that answers. Which ones, and with which texts, depends on the key:
one with limits sees its own queries; one without limits sees all, but texts of other keys only if the
operator allows it (`server.events.texts`). An endpoint without keys shows everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from r2_serve.config import ServerConfig
from r2_serve.dialects.chat import CHAT
from r2_serve.dialects.wire import event
from r2_serve.http.edge import Exchange
from r2_serve.http.keys import ClientKey
from r2_serve.http.redaction import redacted
from r2_serve.http.sse import EventStream, raise_when_gone, run_with
from r2_serve.router.backend import RouterBackend
from r2_serve.router.events import Reader
from r2_serve.types import Event, Json


def event_json(happened: Event, redact: Callable[[str], str]) -> Json:
    """An event as JSON, without the fields that its kind does not have."""
    return redacted(happened.model_dump(mode="json", exclude_none=True), redact, spared="answer")


@dataclass(frozen=True)
class Watching:
    """The route, as an ASGI application."""

    backend: RouterBackend
    server: ServerConfig

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        stream = EventStream(send, self.server.heartbeat_s, CHAT.heartbeat)
        with self.backend.events.reading(lambda happened: _may_see(exchange.key, happened)) as reader:
            await stream.write(event({"version": 1, "kind": "watching"}, "r2.watching"))
            companions = [raise_when_gone(receive), stream.beat()]
            await run_with(companions, self._send_all(reader, stream, exchange))

    async def _send_all(self, reader: Reader, stream: EventStream, exchange: Exchange) -> None:
        num_lost = 0
        while True:
            happened = await reader.next()
            if reader.num_lost > num_lost:
                lost, num_lost = reader.num_lost - num_lost, reader.num_lost
                await stream.write(event({"version": 1, "kind": "lost", "events": lost}, "r2.lost"))
            shown = happened if self._may_read(exchange.key, happened) else happened.without_texts()
            await stream.write(event(event_json(shown, exchange.redact), f"r2.{shown.kind}"))

    def _may_read(self, key: ClientKey | None, happened: Event) -> bool:
        return key is None or key.name == happened.client or self.server.events.texts


def _may_see(key: ClientKey | None, happened: Event) -> bool:
    return key is None or not key.is_restricted or key.name == happened.client
