"""One endpoint for conversations in any dialect: body, admission, work, and the reply, whole or streamed."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from difflib import get_close_matches
from typing import get_args

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from r2_serve.calls.budget import Purse
from r2_serve.config import ServerConfig
from r2_serve.dialects.chat import ChatReply
from r2_serve.dialects.wire import Arrival, Dialect, Reply, Request
from r2_serve.errors import InvalidReply, InvalidRequest, ModelNotFound, NotAllowed, R2Error
from r2_serve.http.admission import Admission
from r2_serve.http.edge import Exchange
from r2_serve.http.events import event_json
from r2_serve.http.keys import ClientKey
from r2_serve.http.openai_replies import extra_headers, extras
from r2_serve.http.openai_wire import ChatRequest, parse_chat
from r2_serve.http.redaction import redacted
from r2_serve.http.refusals import check_forwarded
from r2_serve.http.spend import Purses
from r2_serve.http.sse import ClientGone, EventStream, raise_when_gone, run_with
from r2_serve.router.backend import ModelListing, RouterBackend
from r2_serve.router.events import Reader
from r2_serve.types import Answer, Delta, Event, Json, OnDelta, Priority, Query, TraceContext

MIN_DEADLINE_S = 0.001
"""The time left to a request that got its place at the last moment."""
LAST_WORDS_S = 5.0
"""The time to send the end of a stream after its deadline; a client that does not read it counts as gone."""
MAX_NAME_CHARS = 100
"""How much of a model name an error repeats."""
MAX_SESSION_CHARS = 200
"""How much of a conversation's name counts."""
MAX_NAMES = 20
"""How many model names an error lists."""


@dataclass(frozen=True)
class Endpoint:
    """The endpoint of one dialect, as an ASGI application."""

    dialect: Dialect
    backend: RouterBackend
    server: ServerConfig
    admission: Admission
    purses: Purses
    clock: Callable[[], float]
    """Wall-clock seconds, for `created`."""
    new_id: Callable[[], str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, headers = Exchange.of(scope), Headers(scope=scope)
        body = await read_json(headers, receive, self.server.max_body_bytes, self.server.body_timeout_s)
        request = self.dialect.read(body, self.arrival(exchange, headers))
        try:
            await self._answer(request, exchange, scope, receive, send)
        except R2Error as e:
            _rename(e, e.param and request.param(e.param))
            raise

    async def _answer(
        self, request: Request, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        chat, query, listing = self.parsed(request, exchange)
        server, purse = self.server, self._purse(exchange.key)
        exchange.model = listing.id
        reply = request.reply(chat.model, wants_usage_chunk=chat.wants_usage_chunk)
        if chat.r2.events and not isinstance(reply, ChatReply):
            raise InvalidRequest(
                "r2.events: only streams of chat completions carry events", param="r2.events"
            )
        if chat.stream:
            stream = EventStream(send, server.heartbeat_s, self.dialect.heartbeat)
            await _Streamed(self, chat, query, purse, reply, exchange, stream).run(receive)
            return
        answer = await run_with([raise_when_gone(receive)], self.work(query, purse))
        exchange.cost_usd = answer.cost_usd
        written = reply.whole(answer, self.extras(chat, answer, exchange))
        response = Response(written, headers=extra_headers(answer), media_type="application/json")
        await response(scope, receive, send)

    def arrival(self, exchange: Exchange, headers: Headers) -> Arrival:
        owner = exchange.key.name if exchange.key else None
        exchange.reply_id = self.new_id()
        known = (exchange.request_id, int(self.clock()), exchange.reply_id)
        return Arrival(*known, headers, owner, self._speaks)

    def _speaks(self, model: str, ability: str) -> bool:
        pool = (known for known in self.backend.models() if not known.is_virtual)
        return any(known.id == model and ability in known.abilities for known in pool)

    def parsed(self, request: Request, exchange: Exchange) -> tuple[ChatRequest, Query, ModelListing]:
        """The request as the asked model takes it, its query, and that model. Raises: InvalidRequest."""
        chat, listing = self._checked(request.chat, exchange.key)
        query = request.refined(chat.to_query(exchange.request_id, is_virtual=listing.is_virtual))
        check_forwarded(query.sampling.responses or ())
        check_forwarded(query.sampling.messages_api or ())
        return chat, self._of_its_conversation(query, exchange), listing

    def _of_its_conversation(self, query: Query, exchange: Exchange) -> Query:
        """`query` with what tells it and its conversation from others, and a rank that its key allows."""
        named = query.session or query.sampling.forwarded.get("prompt_cache_key")
        session = exchange.session or (named if isinstance(named, str) else None)
        key = exchange.key
        update = {
            "session": session and session[:MAX_SESSION_CHARS],
            "client": key.name if key else "",
            "reply_id": exchange.reply_id,
            "priority": max(query.priority, key.priority if key else "user", key=get_args(Priority).index),
            "context": self._trace_context(exchange),
        }
        return query.model_copy(update=update)

    def _trace_context(self, exchange: Exchange) -> TraceContext | None:
        otel = self.server.otel
        draw = otel is not None and random.random() < otel.sample  # nosec B311
        context = TraceContext.of(exchange.trace_parent, records=draw)
        return context and (context if otel else context.unrecorded())

    def _checked(self, body: bytes, key: ClientKey | None) -> tuple[ChatRequest, ModelListing]:
        chat = parse_chat(body)
        listing = find_model(self.backend, chat.model, key)
        check_forwarded(chat.model_extra or ())
        return chat, listing

    async def work(self, query: Query, purse: Purse | None, on_delta: OnDelta | None = None) -> Answer:
        """Waits for a place and then for the answer, both within one deadline."""
        deadline_s = self.deadline_s(query)
        async with self.admission.slot(deadline_s) as waited_s:
            query = query.model_copy(update={"deadline_s": max(deadline_s - waited_s, MIN_DEADLINE_S)})
            return await self.backend.answer(query, on_delta, purse)

    def deadline_s(self, query: Query) -> float:
        """The sooner of the request's own deadline and the routing's."""
        return min(self.backend.deadline_s, query.deadline_s or math.inf)

    def _purse(self, key: ClientKey | None) -> Purse | None:
        """Raises: QuotaExceeded if the purse is empty, before the request takes a place in the queue."""
        if key is None:
            return None
        purse = self.purses.of(key)
        left_usd = purse.left_usd()
        if left_usd is not None and left_usd <= 0:
            raise purse.refusal()
        return purse

    def extras(self, chat: ChatRequest, answer: Answer, exchange: Exchange) -> Json:
        """The `r2` field, redacted except for answers: reasons of fallbacks quote providers."""
        shown = extras(
            answer,
            self.backend.prices_as_of,
            has_trace=bool(chat.r2.trace),
            has_confidence=bool(chat.r2.confidence),
        )
        return redacted(shown, exchange.redact, spared="answer")


@dataclass
class _Streamed:
    """One streamed reply."""

    endpoint: Endpoint
    chat: ChatRequest
    query: Query
    purse: Purse | None
    reply: Reply
    exchange: Exchange
    stream: EventStream
    sent: str = ""
    is_verbatim: bool = False

    async def run(self, receive: Receive) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.endpoint.deadline_s(self.query)
        companions = [raise_when_gone(receive), self.stream.beat()]
        try:
            work = self.endpoint.work(self.query, self.purse, self._send)
            if self.chat.r2.events:
                answer = await self._watched(companions, work)
            else:
                answer = await run_with(companions, work)
            rest = "" if self.is_verbatim else text_after(self.sent, answer.text)
        except ClientGone:
            raise
        except Exception as e:
            if not self.stream.is_committed:
                raise
            await self.stream.end(self.reply.failure(self.exchange.fail(e)), LAST_WORDS_S)
            return
        self.exchange.cost_usd = answer.cost_usd
        extras = self.endpoint.extras(self.chat, answer, self.exchange)
        await self.stream.end(self.reply.end(answer, rest, extras), max(deadline - clock(), LAST_WORDS_S))

    async def _watched(
        self, companions: list[Coroutine[object, object, None]], work: Coroutine[object, object, Answer]
    ) -> Answer:
        """The answer of `work`, while the events of the query are sent as they happen."""
        query = self.query

        def is_its_own(happened: Event) -> bool:
            return (happened.request_id, happened.client) == (query.request_id, query.client)

        with self.endpoint.backend.events.reading(is_its_own) as reader:
            answer = await run_with([*companions, self._send_events(reader)], work)
            for happened in reader.rest():
                await self._send_event(happened)
        return answer

    async def _send_events(self, reader: Reader) -> None:
        while True:
            await self._send_event(await reader.next())

    async def _send_event(self, happened: Event) -> None:
        assert isinstance(self.reply, ChatReply)
        shown: Json = {"event": event_json(happened, self.exchange.redact)}
        await self.stream.write(self.reply.note(f"r2.{happened.kind}", shown))

    async def _send(self, piece: Delta) -> None:
        if piece.body is not None:
            self.is_verbatim = True
        else:
            self.sent += piece.text
        if events := self.reply.piece(piece):
            await self.stream.write(events)


def _rename(error: R2Error, param: str | None) -> None:
    """Give the field at fault its name in the client's dialect, also where the message begins with it."""
    if error.param and param and error.message.startswith(f"{error.param}: "):
        error.message = param + error.message.removeprefix(error.param)
    error.param = param


def text_after(sent: str, text: str) -> str:
    """The part of `text` still to send. Outer white space, which codecs strip from whole answers, may differ.

    Raises: InvalidReply if `text` does not go on from `sent`, so that no mixture passes for an answer.
    """
    if text.startswith(sent):
        return text[len(sent) :]
    if text.strip().startswith(sent.strip()):
        return text.strip()[len(sent.strip()) :]
    raise InvalidReply("the answer is not what was streamed of it; ask again")


async def read_json(headers: Headers, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The request's body; it holds at most `max_bytes` in memory and waits at most `timeout_s`.

    Raises: HTTPException 408, 413, 415; ClientGone.
    """
    media_type, _, parameters = headers.get("content-type", "").lower().partition(";")
    if media_type.strip() != "application/json" or ("charset" in parameters and "utf-8" not in parameters):
        raise HTTPException(415, "the body must be sent with 'content-type: application/json', in UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "the body must be sent uncompressed, without a content-encoding")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, max_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {timeout_s:g} s: send it at once"
        raise HTTPException(408, message, {"connection": "close"}) from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> HTTPException:
    message = f"the body is larger than the {max_bytes} bytes allowed: shorten the messages"
    return HTTPException(413, message, {"connection": "close"})


def find_model(backend: RouterBackend, name: str, key: ClientKey | None) -> ModelListing:
    """Raises: NotAllowed if the key may not use `name`, known or not; ModelNotFound with the nearest name."""
    shown = repr(name[:MAX_NAME_CHARS])
    if key is not None and not key.may_ask(name):
        only = list(key.models or ())[:MAX_NAMES]
        raise NotAllowed(f"key {key.name!r} may not ask for model {shown}, only for {only}")
    listings = {listing.id: listing for listing in backend.models()}
    if name in listings:
        return listings[name]
    near = get_close_matches(name[:MAX_NAME_CHARS], listings, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {list(listings)[:MAX_NAMES]}"
    raise ModelNotFound(f"no model {shown}; {hint}")
