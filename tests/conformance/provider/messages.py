"""The scripted provider's Messages API, as Anthropic documents it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace

from tests.conformance.provider.chat import EVENTS
from tests.conformance.provider.conversation import Answer, Asked, Call, Json, Refusal, Said
from tests.support.messages_provider import events_of
from tests.support.upstream import Script

PARAMETERS = {
    *("model", "messages", "system", "max_tokens", "metadata", "stream", "stop_sequences", "tools"),
    *("tool_choice", "temperature", "top_k", "top_p", "thinking", "service_tier", "cache_control"),
    *("context_management", "output_config", "output_format", "container", "inference_geo", "mcp_servers"),
}


def read(request: Json) -> Asked:
    system = _blocks(request.get("system") or [])
    said = [Said("system", block["text"], is_marked="cache_control" in block) for block in system]
    for message in request["messages"]:
        said += _said(message["role"], _blocks(message["content"]))
    tools = {tool["name"]: tool.get("input_schema") for tool in request.get("tools") or ()}
    choice = request.get("tool_choice") or {}
    forced = choice.get("name") if choice.get("type") == "tool" else None
    if choice.get("type") == "any":
        forced = next(iter(tools))
    config = request.get("output_config") or {}
    format_ = config.get("format") or request.get("output_format") or {}
    kind = (request.get("thinking") or {}).get("type")
    thinks = kind in ("enabled", "adaptive") or (kind is None and "effort" in config)
    if request.get("cache_control"):
        said[-1] = replace(said[-1], is_marked=True)
    return Asked(
        "messages",
        request["model"],
        tuple(said),
        tools,
        forced,
        format_.get("schema"),
        thinks,
        kind == "enabled",
    )


def _blocks(content: str | list[Json]) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _said(role: str, blocks: list[Json]) -> Iterator[Said]:
    """The results of tools, each as a message, then the rest."""
    for block in blocks:
        if block["type"] == "tool_result":
            parts = _blocks(block.get("content") or "")
            marked = "cache_control" in block
            yield Said("tool", _text(parts), _images(parts), answers=block["tool_use_id"], is_marked=marked)
    rest = [block for block in blocks if block["type"] != "tool_result"]
    if not rest:
        return
    thought = next((block for block in rest if block["type"] == "thinking"), {})
    calls = tuple(
        Call(block["id"], block["name"], json.dumps(block["input"]))
        for block in rest
        if block["type"] == "tool_use"
    )
    marked = any("cache_control" in block for block in rest)
    thinking, signature = thought.get("thinking"), thought.get("signature")
    yield Said(role, _text(rest), _images(rest), calls, None, thinking, signature, marked)


def _text(blocks: list[Json]) -> str:
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


def _images(blocks: list[Json]) -> tuple[str, ...]:
    sources = [block["source"] for block in blocks if block["type"] == "image"]
    return tuple(
        f"{source['media_type']} of {len(base64.b64decode(source['data'], validate=True))} bytes"
        for source in sources
    )


def count(request: Json) -> Script:
    """The reply of `/messages/count_tokens`."""
    return Script([json.dumps({"input_tokens": sum(each.tokens for each in read(request).said)}).encode()])


def refuse(refusal: Refusal) -> Script:
    kind = {429: "rate_limit_error", 401: "authentication_error", 529: "overloaded_error"}
    error = {"type": kind.get(refusal.status, "invalid_request_error"), "message": refusal.message}
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    body = {"type": "error", "error": error, "request_id": "req_1"}
    return Script([json.dumps(body).encode()], refusal.status, headers)


def write(answer: Answer, request: Json) -> Script:
    message: Json = {
        "id": f"msg_{answer.number}",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": list(_content(answer)),
        "stop_reason": "tool_use" if answer.calls else "end_turn",
        "stop_sequence": None,
        "usage": _usage(answer),
    }
    if not request.get("stream"):
        return Script([json.dumps(message).encode()])
    return Script(events_of(message), headers=EVENTS)


def _content(answer: Answer) -> Iterator[Json]:
    if answer.thought:
        yield {"type": "thinking", "thinking": answer.thought, "signature": answer.signature}
    if answer.text:
        yield {"type": "text", "text": answer.text}
    for call in answer.calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt - usage.cached_read - usage.cached_write,
        "cache_read_input_tokens": usage.cached_read,
        "cache_creation_input_tokens": usage.cached_write,
        "output_tokens": usage.reply,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }
