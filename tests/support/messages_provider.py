"""A provider of Anthropic's Messages API whose model calls tools, sees images, thinks, caches and refuses.

The shapes are those of Anthropic's documentation (https://docs.anthropic.com/en/api/messages and
/messages-streaming). Any request that the API does not take is answered with its error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.upstream import Script

USAGE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 200,
    "cache_read_input_tokens": 700,
    "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
    "output_tokens": 60,
    "output_tokens_details": {"thinking_tokens": 40},
    "service_tier": "standard",
}
"""Usage of every reply: 1,000 tokens of prompt in chat completions' words."""
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk="
THOUGHT = {"type": "thinking", "thinking": "two and two", "signature": SIGNATURE}
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIw"}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "Oslo"}}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [
        {
            "type": "web_search_result",
            "url": "http://x",
            "title": "x",
            "encrypted_content": "EqgfCio",
            "page_age": None,
        }
    ],
}
CITED = {
    "type": "text",
    "text": "sun in Oslo",
    "citations": [
        {
            "type": "web_search_result_location",
            "url": "http://x",
            "title": "x",
            "encrypted_index": "Eo8BCioIAhgBIiQyYjQ0OWJmZi1lNm",
            "cited_text": "sun",
        }
    ],
}
TYPES = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error", 500: "api_error"}


def answer(request: dict[str, Any]) -> Script:
    """What the API answers to `request`, streamed if asked for."""
    if fault := fault_of(request):
        return error(400, fault)
    if request["_path"].endswith("/count_tokens"):
        return Script([json.dumps({"input_tokens": 14}).encode()])
    if "overloaded" in str(request["messages"][-1]["content"]):
        return error(529, "Overloaded")
    message = message_of(request)
    if request.get("stream"):
        return Script(events_of(message), headers={"content-type": "text/event-stream; charset=utf-8"})
    return Script([json.dumps(message).encode()], headers={"request-id": "req_provider"})


def fault_of(request: dict[str, Any]) -> str | None:
    """What is wrong with a request, in the API's words."""
    headers, is_count = request["_headers"], request["_path"].endswith("/count_tokens")
    if headers.get("anthropic-version") not in ("2023-06-01", "2026-10-21"):
        return "anthropic-version: header is required"
    if "max_tokens" not in request and not is_count:
        return "max_tokens: Field required"
    last: dict[str, Any] = {}
    for index, turn in enumerate(request["messages"]):
        if turn["role"] not in ("user", "assistant", "system"):
            return f'messages.{index}.role: Input should be "user" or "assistant"'
        if "" in [block.get("text") for block in blocks_of(turn)]:
            return f"messages.{index}: text content blocks must be non-empty"
        called = {block["id"] for block in blocks_of(last) if block["type"] == "tool_use"}
        results = {b["tool_use_id"] for b in blocks_of(turn) if b["type"] == "tool_result"}
        if called != results:
            return f"messages.{index}: `tool_use` ids were found without `tool_result` blocks: {called}"
        last = turn
    return None


def blocks_of(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def error(status: int, message: str) -> Script:
    fields = {"type": TYPES[status], "message": message}
    body = {"type": "error", "error": fields, "request_id": "req_provider"}
    return Script([json.dumps(body).encode()], status=status)


def message_of(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request, whole."""
    content, reason = content_of(request)
    head = {"id": "msg_provider", "type": "message", "role": "assistant", "model": "claude-real"}
    stop = {"stop_reason": reason, "stop_sequence": "END" if reason == "stop_sequence" else None}
    return {**head, "content": content, **stop, "usage": USAGE}


def content_of(request: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    last = blocks_of(request["messages"][-1])
    said = str(last)
    if "forbidden" in said:
        return [{"type": "text", "text": "I will not"}], "refusal"
    if "long" in said:
        return [{"type": "text", "text": "fo"}], "max_tokens"
    if "END" in request.get("stop_sequences", ()):
        return [{"type": "text", "text": "four"}], "stop_sequence"
    thoughts = [THOUGHT, REDACTED] if request.get("thinking", {}).get("type") == "enabled" else []
    if results := [block for block in last if block["type"] == "tool_result"]:
        text = " and ".join(text_of(block["content"]) for block in results)
        return [*thoughts, {"type": "text", "text": text}], "end_turn"
    if any(tool.get("type", "custom").startswith("web_search") for tool in request.get("tools", ())):
        return [{"type": "text", "text": "I search."}, SEARCH, FOUND, CITED], "end_turn"
    if request.get("tools") and request.get("tool_choice") != {"type": "none"}:
        calls = [call(1, "Oslo"), call(2, "Rome")]
        return [*thoughts, {"type": "text", "text": "I look."}, *calls], "tool_use"
    return [*thoughts, {"type": "text", "text": "four"}], "end_turn"


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def call(number: int, city: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "weather", "input": {"city": city}}


def events_of(message: dict[str, Any]) -> list[bytes]:
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in stream_of(message)]


def stream_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply; texts and arguments come in two pieces, the output's tokens last."""
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    usage = {key: value for key, value in message["usage"].items() if key != "output_tokens_details"}
    yield {"type": "message_start", "message": {**start, "usage": {**usage, "output_tokens": 1}}}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        started, deltas = pieces_of(block)
        yield {"type": "content_block_start", "index": index, "content_block": started}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    details = {name: message["usage"][name] for name in ("output_tokens", "output_tokens_details")}
    yield {"type": "message_delta", "delta": stop, "usage": details}
    yield {"type": "message_stop"}


def pieces_of(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it starts, and the deltas that complete it."""
    if block["type"] == "text":
        text, half = block["text"], len(block["text"]) // 2
        deltas = [{"type": "text_delta", "text": part} for part in (text[:half], text[half:])]
        notes = [{"type": "citations_delta", "citation": note} for note in block.get("citations", ())]
        return {**block, "text": "", **({"citations": []} if notes else {})}, notes + deltas
    if block["type"] == "thinking":
        thought = {"type": "thinking_delta", "thinking": block["thinking"]}
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [thought, signed]
    if block["type"] in ("tool_use", "server_tool_use"):
        text = json.dumps(block["input"])
        parts = ("", text[:5], text[5:])
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return block, []
