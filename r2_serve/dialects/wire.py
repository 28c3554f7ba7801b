"""What the endpoint asks of a dialect, and the JSON and events that every dialect writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic_core import from_json

from r2_serve.errors import InvalidRequest
from r2_serve.types import Answer, Delta, Json, Query

NATIVE = frozenset({"messages_api", "responses"})
"""Keys of a chat completion or chunk under which a provider's own stands, if it speaks another dialect."""


def encode(value: Json) -> bytes:
    """Compact ASCII JSON on one line, so that no line separator in a text can split an event."""
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Json, name: str | None = None) -> bytes:
    """One server-sent event, with an `event` line if it has a name."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(value) + b"\n\n"


def read_object(body: bytes, fields: str = "") -> Json:
    """The JSON object in `body`; `fields` says what it must hold. NaN and halves of surrogate pairs are no
    JSON, and neither are values nested deeper than about 200 levels.

    Raises: InvalidRequest.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object" + (f" with {fields}" if fields else ""))
    return value


@dataclass(frozen=True)
class ErrorReply:
    """An error as the client gets it, before a dialect gives it its shape."""

    status: int
    message: str
    kind: str
    """The type of the error in OpenAI's words, such as `invalid_request_error`."""
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _never(model: str, ability: str) -> bool:
    return False


@dataclass(frozen=True)
class Arrival:
    """What is known of a request besides its body."""

    request_id: str
    created: int
    """Unix time in seconds."""
    reply_id: str
    """The id of the reply, to which each dialect adds its prefix."""
    headers: Mapping[str, str]
    """The headers, with names in lower case."""
    owner: str | None = None
    """The name of the client's key; None if the endpoint is open."""
    speaks: Callable[[str, str], bool] = _never
    """Whether the provider of a model speaks a dialect itself: `speaks("gpt-5.5", "responses_api")`."""


class Reply(Protocol):
    """Writes the reply to one request: whole, or piece by piece."""

    def whole(self, answer: Answer, r2: Json) -> bytes:
        """The body of a reply that is not streamed. `r2` is what R2 adds to every reply."""
        ...

    def piece(self, piece: Delta) -> bytes:
        """The events of the next piece. They may be empty, and a piece may be held back for the next one."""
        ...

    def end(self, answer: Answer, rest: str, r2: Json) -> bytes:
        """The last events: those of `rest`, the text still to send, and of the end of the whole reply."""
        ...

    def failure(self, error: ErrorReply) -> bytes:
        """The event that ends a stream which broke after its status was sent."""
        ...


class Request(Protocol):
    """One request of a client, read."""

    @property
    def chat(self) -> bytes:
        """The request as a body of chat completions, which the endpoint checks and answers."""
        ...

    def refined(self, query: Query) -> Query:
        """`query`, read from `chat`, with what chat completions cannot say."""
        ...

    def param(self, name: str) -> str:
        """The client's name of a field that a refusal names as chat completions do."""
        ...

    def reply(self, model: str, *, wants_usage_chunk: bool) -> Reply:
        """The writer of the reply. `model` is the name that the client gave."""
        ...


class Dialect(Protocol):
    """One wire of the endpoint. It keeps no state of a request, so that one object serves all."""

    @property
    def heartbeat(self) -> bytes:
        """What a stream sends while there is nothing else to send."""
        ...

    def read(self, body: bytes, arrival: Arrival) -> Request:
        """Raises: InvalidRequest naming the field at fault, in the dialect's own words."""
        ...

    def error_body(self, error: ErrorReply, request_id: str) -> Json:
        """The body of an error."""
        ...
