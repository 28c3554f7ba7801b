"""OpenAI's Responses API: POST /v1/responses, and the wire of providers that speak it themselves.

requests   a request's body as a body of chat completions
items      items of the conversation as messages
history    messages as items
parts      parts of a message, both ways
names      tools, both ways, and the names by which calls find their way back
thoughts   reasoning items, both ways
output     a reply's items and events
replies    the response object and its stream

Source: https://platform.openai.com/docs/api-reference/responses and the types of the `openai` package.
Clients run what they offer: functions, custom tools, tools in namespaces, a search for tools. Chat models get
all of them as functions. What a provider runs by itself, and items that nothing here interprets, go to a
provider that speaks this API, and come back as they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from r2_serve.dialects.chat import CHAT
from r2_serve.dialects.responses.replies import ResponseReply
from r2_serve.dialects.responses.requests import PARAMS, Translated, input_items, translated
from r2_serve.dialects.wire import Arrival, ErrorReply, encode, read_object
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json, Query


@dataclass(frozen=True)
class Earlier:
    """An earlier response of the same client, as the next one goes on from it."""

    items: tuple[Json, ...]
    """The whole conversation up to its last output."""
    session: str | None
    """The `prompt_cache_key` with which the conversation began."""


class Keeper(Protocol):
    """Keeps responses for the clients that made them. `owner` is the name of a client's key."""

    def earlier(self, owner: str | None, response_id: str) -> Earlier | None:
        """The conversation up to a response; None if it is not known, another's, or not finished."""
        ...

    def item(self, owner: str | None, item_id: str) -> Json | None:
        """An input or output item; None if it is not known, or another's."""
        ...

    def keep(self, owner: str | None, response: Json, items: tuple[Json, ...], session: str | None) -> bool:
        """Keeps a response and the input that was new in it. Tells whether it could."""
        ...


class ResponsesDialect:
    """The dialect of POST /v1/responses."""

    heartbeat = CHAT.heartbeat

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def read(self, body: bytes, arrival: Arrival) -> ResponsesRequest:
        """Raises: InvalidRequest."""
        return read_request(read_object(body, "model and input"), arrival, self._keeper)

    def error_body(self, error: ErrorReply, request_id: str) -> Json:
        return CHAT.error_body(error, request_id)


@dataclass(frozen=True)
class ResponsesRequest:
    """A request, translated."""

    body: Json
    translated: Translated
    items: tuple[Json, ...]
    """The input that is new in this request."""
    session: str | None
    arrival: Arrival
    id: str
    keeper: Keeper

    @property
    def chat(self) -> bytes:
        return encode(self.translated.chat)

    def refined(self, query: Query) -> Query:
        query = self.translated.refined(query)
        return query.model_copy(update={"session": self.session}) if self.session else query

    def param(self, name: str) -> str:
        first, *rest = name.split(".")
        if first == "messages":
            return "input"
        return ".".join([PARAMS.get(first, first), *(part for part in rest if part != "json_schema")])

    def reply(self, model: str, *, wants_usage_chunk: bool) -> ResponseReply:
        keep = partial(_keep, self)
        return ResponseReply(self.id, self.arrival.created, model, self.body, self.translated.names, keep)


def read_request(body: Json, arrival: Arrival, keeper: Keeper) -> ResponsesRequest:
    """Raises: InvalidRequest."""
    own = tuple(_resolved(item, i, arrival, keeper) for i, item in enumerate(input_items(body.get("input"))))
    response_id = f"resp_{arrival.reply_id}"
    earlier = _earlier(body.get("previous_response_id"), arrival, keeper)
    key = body.get("prompt_cache_key")
    session = str(key) if key else earlier.session if earlier else None
    is_native = arrival.speaks(str(body.get("model")), "responses_api")
    read = translated(body, [*(earlier.items if earlier else ()), *own], is_native=is_native)
    return ResponsesRequest(body, read, own, session, arrival, response_id, keeper)


def _keep(request: ResponsesRequest, response: Json) -> bool:
    if request.body.get("store") is False:
        return False
    owner = request.arrival.owner
    return request.keeper.keep(owner, {**response, "store": True}, request.items, request.session)


def _earlier(response_id: object, arrival: Arrival, keeper: Keeper) -> Earlier | None:
    if response_id is None:
        return None
    earlier = keeper.earlier(arrival.owner, str(response_id))
    if earlier is None:
        message = (
            f"no response {str(response_id)[:100]!r} is kept for this key: it was made with store: false, by "
            "another key or by another router process, is too old, or is not finished; send the whole "
            "conversation in input"
        )
        raise InvalidRequest(message, "previous_response_id", "previous_response_not_found")
    return earlier


def _resolved(item: Json, position: int, arrival: Arrival, keeper: Keeper) -> Json:
    """The item to which a reference points; any other item as it is."""
    if not isinstance(item, dict) or item.get("type", "item_reference") != "item_reference" or "role" in item:
        return item
    found = keeper.item(arrival.owner, str(item.get("id")))
    if found is None:
        where = f"input.{position}.id"
        message = f"{where}: no item {str(item.get('id'))[:100]!r} is kept for this key: send the item itself"
        raise InvalidRequest(message, where, "item_not_found")
    return found
