"""Responses that are made while the client is away (`background: true`): it asks for them again, or cancels.

They run in the router process that took the request, and end with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from r2_serve.dialects.responses import ResponsesRequest
from r2_serve.dialects.responses.replies import ResponseReply
from r2_serve.dialects.wire import Request, encode
from r2_serve.errors import InvalidRequest
from r2_serve.http.edge import Exchange
from r2_serve.http.endpoint import Endpoint
from r2_serve.http.openai_wire import ChatRequest
from r2_serve.types import Answer, Json

log = logging.getLogger(__name__)
_LOST: Json = {"code": "server_error", "message": "the router stopped before the response was made"}


@dataclass
class Running:
    """The responses that this process makes in the background, by id."""

    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, response_id: str, work: Coroutine[object, object, None]) -> None:
        task = self.tasks[response_id] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self.tasks.pop(response_id, None))

    async def cancel(self, response_id: str) -> bool:
        """Stops the work on a response and waits for its end; tells whether it was under way here."""
        task = self.tasks.get(response_id)
        if task is None:
            return False
        task.cancel()
        await asyncio.wait([task])
        return True


@dataclass(frozen=True)
class ResponsesEndpoint(Endpoint):
    """POST /v1/responses."""

    running: Running

    async def _answer(
        self, request: Request, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        assert isinstance(request, ResponsesRequest)
        if not request.body.get("background"):
            await super()._answer(request, exchange, scope, receive, send)
            return
        _check(request.body)
        chat, query, listing = self.parsed(request, exchange)
        exchange.model = listing.id
        reply = request.reply(chat.model, wants_usage_chunk=False)
        begun = reply.at("in_progress")
        if not begun["store"]:
            message = "background: this server has no room to keep the response (server.responses)"
            raise InvalidRequest(message, "background", "unsupported_parameter")
        work = self.work(query, self._purse(exchange.key))
        self.running.start(request.id, self._run(work, reply, chat, exchange))
        response = Response(encode(begun), media_type="application/json")
        await response(scope, receive, send)

    async def _run(
        self,
        work: Coroutine[object, object, Answer],
        reply: ResponseReply,
        chat: ChatRequest,
        exchange: Exchange,
    ) -> None:
        """Keeps what became of a response: whole, failed or cancelled."""
        try:
            answer = await work
            exchange.cost_usd = answer.cost_usd
            reply.whole(answer, self.extras(chat, answer, exchange))
        except asyncio.CancelledError:
            reply.at("cancelled")
            raise
        except Exception as e:  # noqa: BLE001  the client reads it later
            reply.at("failed", exchange.fail(e))
        log.info("background %s cost_usd=%s error=%s", reply.id, exchange.cost_usd, exchange.error)


def _check(body: Json) -> None:
    """Raises: InvalidRequest for what does not go with `background`."""
    if body.get("stream"):
        message = "background: leave out stream, and read the response again until it is complete"
        raise InvalidRequest(message, "background", "unsupported_value")
    if body.get("store") is False:
        message = "background: leave out store: false, as the response is kept until you read it"
        raise InvalidRequest(message, "store", "invalid_value")


def settled(response: Json, *, is_lost: bool) -> Json:
    """A kept response as clients read it: failed if it is under way nowhere (`is_lost`)."""
    if response.get("status") != "in_progress" or not is_lost:
        return response
    return {**response, "status": "failed", "error": _LOST}
