"""The endpoint's OpenAPI description, from the very schema that requests are checked against."""

from __future__ import annotations

from functools import cache
from typing import Any

from r2_serve import __version__
from r2_serve.http.openai_wire import ChatRequest
from r2_serve.http.refusals import UNSUPPORTED

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def describe() -> dict[str, Any]:
    """OpenAPI 3.1. Parameters of OpenAI that R2 refuses are left out."""
    chat = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = chat.pop("$defs")
    chat["properties"] = {
        name: schema for name, schema in chat["properties"].items() if name not in UNSUPPORTED
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "R2",
            "version": __version__,
            "description": "An LLM router behind the OpenAI chat API.",
        },
        "paths": _paths(),
        "components": {
            "schemas": {**parts, "ChatRequest": chat, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _paths() -> dict[str, Any]:
    chat = _operation(
        "Answer a conversation; text/event-stream with stream: true", "application/json", "text/event-stream"
    )
    chat["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
    model = _operation("One model", "application/json")
    model["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {
            "get": _operation("Models that may be asked for, with prices in r2", "application/json")
        },
        "/v1/models/{id}": {"get": model},
        "/health": {"get": _open(_operation("Whether the process is alive", "application/json"))},
        "/health/ready": {"get": _open(_operation("Whether queries can be answered", "application/json"))},
        "/metrics": {"get": _operation("Prometheus text", "text/plain")},
    }


def _operation(summary: str, *media_types: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": {media_type: {} for media_type in media_types}},
            "default": {
                "description": "Error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }


def _open(operation: dict[str, Any]) -> dict[str, Any]:
    return {**operation, "security": []}
