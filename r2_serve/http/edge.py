"""The outermost layer of the endpoint: request ids, client keys, log lines and the last resort for errors.

Nothing that a client or a user wrote reaches the log: an unforeseen error is logged as its type and the code
lines that it passed.
"""

from __future__ import annotations

import logging
import re
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r2_serve.dialects.chat import CHAT
from r2_serve.dialects.messages import MESSAGES
from r2_serve.dialects.wire import Dialect, ErrorReply, encode
from r2_serve.errors import R2Error, places
from r2_serve.http.keys import ClientKey, KeyRing
from r2_serve.http.metrics import Metrics
from r2_serve.http.openai_replies import error_reply
from r2_serve.http.page import PAGE, is_page
from r2_serve.http.sse import ClientGone

log = logging.getLogger(__name__)
OPEN_PATHS = ("/health", "/health/ready", "/openapi.json")
"""Paths that need no key, beside the page. If keys are set, every other path needs one, unknown ones too."""
DIALECT_OF: Mapping[str, Dialect] = {"/v1/messages": MESSAGES, "/v1/messages/count_tokens": MESSAGES}
"""The dialect of the errors of each path; chat completions on all others."""
ROUTES = (
    "/v1/chat/completions",
    "/v1/responses",
    *DIALECT_OF,
    "/v1/completions",
    "/v1/embeddings",
    "/v1/r2/feedback",
    "/v1/r2/events",
    "/v1/r2/keys",
    "/v1/models",
    "/metrics",
    *OPEN_PATHS,
)
CLIENT_CLOSED = 499
"""Status in logs and metrics of a request whose client left; nginx uses the same number."""
_VISIBLE_ASCII = re.compile(r"[!-~]{1,128}")


@dataclass
class Exchange:
    """What is known of one request and its reply so far."""

    request_id: str
    reply_id: str = ""
    """The id of the reply without the prefix of its dialect; `request_id` may be the client's own."""
    key: ClientKey | None = None
    """None if the endpoint is open."""
    session: str | None = None
    """The client's name of the conversation (header `x-session-id`)."""
    trace_parent: str | None = None
    """The client's place in a distributed trace (header `traceparent`)."""
    model: str = ""
    """A name the backend knows, or empty; it becomes a label."""
    status: int | None = None
    """Status of the reply, or of the failure if a stream failed after its status 200 was sent."""
    has_started: bool = False
    cost_usd: Decimal | None = None
    error: str | None = None
    redact: Callable[[str], str] = str
    dialect: Dialect = CHAT
    """The dialect of the path asked, in which its errors are written."""

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        found = scope["r2.exchange"]
        assert isinstance(found, cls)
        return found

    def fail(self, error: Exception) -> ErrorReply:
        """Notes `error`; returns what the client gets to read."""
        reply = error_reply(error, self.request_id)
        code, param = (text and self.redact(text) for text in (reply.code, reply.param))
        message, kind = self.redact(reply.message), self.redact(reply.kind)
        reply = replace(reply, message=message, kind=kind, code=code, param=param)
        self.status, self.error = reply.status, type(error).__name__
        self.cost_usd = error.cost_usd if isinstance(error, R2Error) else None
        if not isinstance(error, R2Error | HTTPException):
            log.error("request %s: unforeseen %s at %s", self.request_id, type(error).__name__, places(error))
        return reply

    def failed(self, error: Exception) -> Response:
        """Notes `error`; returns the whole reply that the client gets."""
        reply = self.fail(error)
        body = encode(self.dialect.error_body(reply, self.request_id))
        return Response(body, reply.status, dict(reply.headers), media_type="application/json")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        metrics: Metrics,
        new_id: Callable[[], str],
        redact: Callable[[str], str],
    ) -> None:
        self._app, self._keys, self._metrics, self._new_id, self._redact = app, keys, metrics, new_id, redact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # not accepted yet, so the client gets a 403
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        headers = Headers(scope=scope)
        dialect = DIALECT_OF.get(_path(scope), CHAT)
        exchange = scope["r2.exchange"] = Exchange(
            self._request_id(headers),
            session=headers.get("x-session-id"),
            trace_parent=headers.get("traceparent"),
            redact=self._redact,
            dialect=dialect,
        )
        try:
            await self._reply(scope, receive, _with_request_id(send, exchange), headers)
        except (ClientGone, CancelledError) as e:
            exchange.status = CLIENT_CLOSED
            if isinstance(e, CancelledError):
                raise
        finally:
            self._record(_path(scope), exchange, time.perf_counter() - started_s)

    async def _reply(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        exchange = Exchange.of(scope)
        try:
            self._check_key(_path(scope), exchange, headers)
            await self._app(scope, receive, send)
        except ClientGone:
            raise
        except Exception as e:  # noqa: BLE001  every client gets an error body
            response = exchange.failed(e)
            if not exchange.has_started:
                await response(scope, receive, send)

    def _check_key(self, path: str, exchange: Exchange, headers: Headers) -> None:
        if path in OPEN_PATHS or is_page(path) or not self._keys.is_required:
            return
        given = headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}"
        exchange.key = self._keys.find(given)
        if exchange.key is None:
            got = "no key" if given == "Bearer " else "a key that is not known"
            message = f"got {got}: send a valid one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise HTTPException(401, message, {"www-authenticate": "Bearer"})

    def _request_id(self, headers: Headers) -> str:
        """The client's own id if it is safe to repeat."""
        given = headers.get("x-request-id", "")
        return given if _VISIBLE_ASCII.fullmatch(given) else f"req_{self._new_id()}"

    def _record(self, path: str, exchange: Exchange, duration_s: float) -> None:
        status = exchange.status or 500
        route = _route(path)
        self._metrics.count_request(route, exchange.model, status, duration_s)
        log.log(
            logging.DEBUG if route in OPEN_PATHS or route == "/metrics" else logging.INFO,
            "request %s route=%s key=%s model=%s status=%d ms=%.1f cost_usd=%s error=%s",
            exchange.request_id,
            route,
            exchange.key.name if exchange.key else "-",
            exchange.model or "-",
            status,
            duration_s * 1000,
            "-" if exchange.cost_usd is None else f"{exchange.cost_usd:f}",
            exchange.error or "-",
        )


def _route(path: str) -> str:
    """The route of a path, without what clients choose."""
    if is_page(path):
        return PAGE
    families = (route for route in ("/v1/models", "/v1/responses") if path.startswith(f"{route}/"))
    return path if path in ROUTES else next((f"{route}/{{id}}" for route in families), "other")


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(str(scope.get("root_path", "")))


def _with_request_id(send: Send, exchange: Exchange) -> Send:
    id = exchange.request_id.encode()
    names = (b"x-request-id", b"request-id") if exchange.dialect is MESSAGES else (b"x-request-id",)

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status, exchange.has_started = message["status"], True
            message = {**message, "headers": [*message.get("headers", ()), *((name, id) for name in names)]}
        await send(message)

    return send_with_id


async def answer_error(request: Request, error: Exception) -> Response:
    """The application's handler of the foreseen errors, R2Error and HTTPException."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not allowed on {request.url.path[:100]}, only {allowed}"
        error = HTTPException(405, message, error.headers)
    return Exchange.of(request.scope).failed(error)


async def no_such_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every unknown path."""
    raise HTTPException(404, f"nothing at {scope['path'][:100]}; this server has {', '.join(ROUTES)}")
