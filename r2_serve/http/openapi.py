"""The endpoint's OpenAPI description, made from the schema that checks requests."""

from __future__ import annotations

from functools import cache

from r2_serve import __version__
from r2_serve.http.openai_wire import ChatRequest
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
    schemas = {**parts, "ChatRequest": chat, "Error": _ERROR_BODY}
    keys = {"key": {"type": "http", "scheme": "bearer"}}
    description = (
        "An LLM router behind the OpenAI chat API. Requests to /v1/responses and /v1/messages are described "
        "by OpenAI and by Anthropic."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "R2", "version": __version__, "description": description},
        "paths": _paths(),
        "components": {"schemas": schemas, "securitySchemes": keys},
        "security": [{"key": []}],
    }


def _paths() -> Json:
    chat = _operation(
        "Answer a conversation; text/event-stream with stream: true", _JSON, "text/event-stream"
    )
    chat["requestBody"] = {"required": True, "content": _content("ChatRequest")}
    text = _operation("Go on with a text; text/event-stream with stream: true", _JSON, "text/event-stream")
    vectors = _operation("Embeddings of one or several inputs", _JSON)
    model = _operation("One model", _JSON)
    model["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]
    health = _operation("Whether the process is alive", _JSON)
    ready = _operation("Whether queries can be answered", _JSON)
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/completions": {"post": text},
        "/v1/embeddings": {"post": vectors},
        "/v1/models": {"get": _operation("Models that may be asked for, with prices in r2", _JSON)},
        "/v1/models/{id}": {"get": model},
        "/health": {"get": {**health, "security": []}},
        "/health/ready": {"get": {**ready, "security": []}},
        "/metrics": {"get": _operation("Prometheus text", "text/plain")},
    }


def _operation(summary: str, *media_types: str) -> Json:
    good = {"description": "OK", "content": {media_type: {} for media_type in media_types}}
    bad = {"description": "Error", "content": _content("Error")}
    return {"summary": summary, "responses": {"200": good, "default": bad}}


def _content(schema: str) -> Json:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
