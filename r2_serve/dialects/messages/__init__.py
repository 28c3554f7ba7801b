"""Anthropic's Messages API as a dialect of the endpoint (POST /v1/messages) and of a provider.

parts      content blocks and parts of chat completions, in both directions
thoughts   thinking blocks of chat models, in both directions
history    conversations, in both directions
requests   a client's request, read
writing    a request to a provider, written
replies    whole replies, stop reasons and usage, in both directions
events     a provider's stream, read
stream     a client's stream, written
errors     errors for clients
models     the list of models

Source: https://docs.anthropic.com/en/api/messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2_serve.dialects.messages.errors import error_body
from r2_serve.dialects.messages.requests import ReadRequest, read_request
from r2_serve.dialects.messages.stream import MessagesReply, typed
from r2_serve.dialects.wire import Arrival, ErrorReply, encode
from r2_serve.types import Json, Query


class MessagesDialect:
    """The dialect of POST /v1/messages."""

    heartbeat = typed({"type": "ping"})

    def read(self, body: bytes, arrival: Arrival) -> MessagesBody:
        return MessagesBody(read_request(body, arrival.headers), arrival)

    def error_body(self, error: ErrorReply, request_id: str) -> Json:
        return error_body(error, request_id)


MESSAGES = MessagesDialect()


@dataclass(frozen=True)
class MessagesBody:
    """One request, read."""

    request: ReadRequest
    arrival: Arrival

    @property
    def chat(self) -> bytes:
        return encode(self.request.chat)

    def refined(self, query: Query) -> Query:
        return self.request.refined(query)

    def param(self, name: str) -> str:
        return self.request.param(name)

    def reply(self, model: str, *, wants_usage_chunk: bool) -> MessagesReply:
        return MessagesReply(f"msg_{self.arrival.reply_id}", model, self.arrival.request_id)
