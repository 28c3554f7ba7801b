"""Embeddings: POST /v1/embeddings, which answers with vectors and has no conversation.

Source: https://platform.openai.com/docs/api-reference/embeddings. For the core a request is a conversation of
one message with all inputs as text, which is counted and budgeted like any prompt, and the reply is empty;
`input` and the vectors pass as they came. `write_request` and `completion_of` translate for providers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from r2_serve.dialects.chat import ChatBody, ChatDialect, usage_of
from r2_serve.dialects.wire import Arrival, ErrorReply, encode, read_object
from r2_serve.errors import InvalidReply, InvalidRequest
from r2_serve.types import Answer, Delta, Json


class EmbeddingsDialect(ChatDialect):
    """The dialect of POST /v1/embeddings."""

    def read(self, body: bytes, arrival: Arrival) -> EmbeddingsBody:
        """Raises: InvalidRequest."""
        request = read_object(body)
        if "messages" in request or request.get("stream"):
            name = "messages" if "messages" in request else "stream"
            raise InvalidRequest(f"{name}: embeddings have none, send input alone", name, "unknown_parameter")
        if request.get("input") in (None, "", []):
            raise InvalidRequest("input: expected a text or a list", "input", "missing_required_parameter")
        request["messages"] = [{"role": "user", "content": _text_of(request["input"])}]
        return EmbeddingsBody(json.dumps(request).encode(), arrival)


EMBEDDINGS = EmbeddingsDialect()


class EmbeddingsBody(ChatBody):
    """A request whose inputs are also one message."""

    api = "embeddings"
    source = "input"

    def reply(self, model: str, *, wants_usage_chunk: bool) -> EmbeddingsReply:
        return EmbeddingsReply(model)


@dataclass
class EmbeddingsReply:
    """Writes the list of vectors. `model` is the name that the client gave."""

    model: str

    def whole(self, answer: Answer, r2: Json) -> bytes:
        body = {key: value for key, value in (answer.body or {}).items() if key != "choices"}
        usage = usage_of(answer)
        del usage["completion_tokens"]
        return encode({**body, "object": "list", "model": self.model, "usage": usage, "r2": r2})

    def piece(self, piece: Delta) -> bytes:
        raise AssertionError("embeddings are not streamed")

    def end(self, answer: Answer, rest: str, r2: Json) -> bytes:
        raise AssertionError("embeddings are not streamed")

    def failure(self, error: ErrorReply) -> bytes:
        raise AssertionError("embeddings are not streamed")


# -- providers --

_NOT_SENT = frozenset({"messages", "max_tokens", "max_completion_tokens"})


def write_request(body: Json) -> Json:
    """The provider's request that says a body of chat completions with `input`."""
    return {name: value for name, value in body.items() if name not in _NOT_SENT}


def completion_of(body: Json) -> Json:
    """A provider's reply as an empty chat completion that holds the vectors in `data`.

    Raises: InvalidReply if there are none.
    """
    if body.get("error"):
        return body
    data, usage = body.get("data"), body.get("usage")
    if not isinstance(data, list) or not data:
        raise InvalidReply("the reply holds no embeddings: data is missing or empty")
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    counted = {**usage, "completion_tokens": 0} if isinstance(usage, dict) else None
    return {**body, "choices": [choice], "usage": counted}


def _text_of(value: object) -> str:
    """All inputs as one text; tokens as their numbers, other shapes as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ("\n" if any(isinstance(part, str) for part in value) else " ").join(map(_text_of, value))
    return str(value) if isinstance(value, int) else json.dumps(value)
