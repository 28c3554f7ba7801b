"""The endpoint's OpenAPI description, made from the schema that checks requests."""

from __future__ import annotations

from functools import cache

from r2_serve import __version__
from r2_serve.http.openai_wire import ChatRequest
from r2_serve.http.rating import FeedbackRequest
from r2_serve.types import Json

_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_ERROR_FIELDS = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
_ERROR = {"type": "object", "required": list(_ERROR_FIELDS), "properties": _ERROR_FIELDS}
_ERROR_BODY = {"type": "object", "required": ["error"], "properties": {"error": _ERROR}}
_JSON = "application/json"


@cache
def describe() -> Json:
    """OpenAPI 3.1, as far as every model goes: most models take more parameters."""
    chat = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = chat.pop("$defs")
    feedback = FeedbackRequest.model_json_schema()
    own = {"ChatRequest": chat, "FeedbackRequest": feedback, "Error": _ERROR_BODY}
    schemas = {**parts, **_bodies(), **own}
    keys = {
        "key": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    description = (
        "An LLM router behind the APIs of OpenAI (chat completions, Responses, completions, embeddings) and "
        "Anthropic (Messages). Errors of /v1/messages have Anthropic's shape, all others OpenAI's."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "R2", "version": __version__, "description": description},
        "paths": _paths(),
        "components": {"schemas": schemas, "securitySchemes": keys},
        "security": [{"key": []}, {"api_key": []}],
    }


_INPUTS = {"description": "Text, texts, tokens, or several lists of tokens"}
_ITEMS = {"type": ["string", "array"], "description": "Text, or items of the Responses API"}
_MESSAGES = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_STREAM = {"type": "boolean", "default": False}
_COUNTED: Json = {"model": _TEXT, "messages": _MESSAGES, "system": {}, "tools": {"type": "array"}}
OTHER_BODIES: dict[str, tuple[str, Json, str]] = {
    "TextRequest": ("OpenAI's text completions", {"prompt": _INPUTS, "stream": _STREAM}, "prompt"),
    "EmbeddingsRequest": ("OpenAI's embeddings", {"input": _INPUTS}, "input"),
    "ResponsesRequest": (
        "OpenAI's Responses",
        {"input": _ITEMS, "stream": _STREAM, "background": _STREAM, "previous_response_id": _TEXT},
        "input",
    ),
    "CountRequest": ("Anthropic's token counting", _COUNTED, "messages"),
    "MessagesRequest": (
        "Anthropic's Messages",
        {**_COUNTED, "max_tokens": {"type": "integer", "minimum": 1}, "stream": _STREAM},
        "messages max_tokens",
    ),
}
"""Each schema of a body: whose API describes the fields that are not named here, the fields that are named,
and which of them are required beside `model`."""


def _bodies() -> Json:
    return {
        name: {
            "type": "object",
            "description": f"{api}: other fields of that API pass too. `r2` as in ChatRequest.",
            "properties": {"model": _TEXT, **fields, "r2": {"$ref": "#/components/schemas/Extras"}},
            "required": ["model", *required.split()],
        }
        for name, (api, fields, required) in OTHER_BODIES.items()
    }


def _paths() -> Json:
    text, events = "text/plain", "; text/event-stream with stream: true"
    kept = "/v1/responses/{id}"
    listing = _operation("Models that may be asked for, with prices in r2")
    return {
        "/v1/chat/completions": {"post": _asked("Answer a conversation" + events, "ChatRequest")},
        "/v1/completions": {"post": _asked("Go on with a text" + events, "TextRequest")},
        "/v1/embeddings": {"post": _asked("Embeddings of one or several inputs", "EmbeddingsRequest")},
        "/v1/responses": {"post": _asked("Answer as OpenAI's Responses" + events, "ResponsesRequest")},
        kept: {
            "get": _named("Read a kept response again"),
            "delete": _named("Forget a kept response"),
        },
        f"{kept}/cancel": {"post": _named("Stop a response that is made in the background")},
        f"{kept}/input_items": {"get": _named("The input of a response", "order", "limit", "after")},
        "/v1/messages": {"post": _asked("Answer as Anthropic's Messages" + events, "MessagesRequest")},
        "/v1/messages/count_tokens": {"post": _asked("Tokens of a Messages request", "CountRequest")},
        "/v1/r2/feedback": {"post": _asked("Rate an answer", "FeedbackRequest")},
        "/v1/r2/events": {"get": _operation("What happens to queries, as it happens", "text/event-stream")},
        "/v1/r2/keys": {"get": _operation("What a key has spent; all keys for one without limits")},
        "/v1/models": {"get": listing},
        "/v1/models/{id}": {"get": _named("One model")},
        "/health": {"get": {**_operation("Whether the process is alive"), "security": []}},
        "/health/ready": {"get": {**_operation("Whether queries can be answered"), "security": []}},
        "/metrics": {"get": _operation("Prometheus text", text)},
        "/ui": {"get": {**_operation("The page", "text/html"), "security": []}},
        "/openapi.json": {"get": {**_operation("This description"), "security": []}},
    }


def _operation(summary: str, *media_types: str) -> Json:
    good = {"description": "OK", "content": {media_type: {} for media_type in media_types or (_JSON,)}}
    bad = {"description": "Error", "content": _content("Error")}
    return {"summary": summary, "responses": {"200": good, "default": bad}}


def _asked(summary: str, schema: str) -> Json:
    """An operation with a body, that may be streamed if its summary says so."""
    media_types = [_JSON, *["text/event-stream"] * ("text/event-stream" in summary)]
    body = {"required": True, "content": _content(schema)}
    return {**_operation(summary, *media_types), "requestBody": body}


def _named(summary: str, *query: str) -> Json:
    """An operation on what its path names by `id`."""
    given = [{"name": name, "in": "query", "required": False, "schema": _TEXT} for name in query]
    path = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
    return {**_operation(summary), "parameters": [path, *given]}


def _content(schema: str) -> Json:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
