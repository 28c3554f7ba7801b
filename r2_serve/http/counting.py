"""POST /v1/messages/count_tokens: how many tokens a request of Messages has, without asking the model."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from r2_serve.dialects.messages import MessagesBody
from r2_serve.dialects.messages.requests import read_request
from r2_serve.dialects.wire import encode
from r2_serve.errors import R2Error
from r2_serve.http.edge import Exchange
from r2_serve.http.endpoint import Endpoint, read_json


@dataclass(frozen=True)
class CountTokens:
    """The endpoint, as an ASGI application. It costs nothing and takes no place in the queue."""

    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, exchange, headers = self.endpoint, Exchange.of(scope), Headers(scope=scope)
        server = endpoint.server
        body = await read_json(headers, receive, server.max_body_bytes, server.body_timeout_s)
        read = read_request(body, headers, is_count=True)
        try:
            _, query, listing = endpoint.parsed(
                MessagesBody(read, endpoint.arrival(exchange, headers)), exchange
            )
            exchange.model = listing.id
            count = await endpoint.backend.count_tokens(query)
        except R2Error as e:
            e.param = e.param and read.param(e.param)
            raise
        response = Response(encode({"input_tokens": count}), media_type="application/json")
        await response(scope, receive, send)
