"""A provider whose model calls tools, sees images, thinks, refuses and bills with all its details."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.upstream import Script, sse

USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 60,
    "total_tokens": 1060,
    "prompt_tokens_details": {"cached_tokens": 768, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 40, "accepted_prediction_tokens": 0},
}
EXTRAS = {"system_fingerprint": "fp_1", "service_tier": "flex"}
LOGPROBS = {
    "content": [
        {
            "token": "four",
            "logprob": -0.5,
            "bytes": None,
            "top_logprobs": [{"token": "five", "logprob": -1.5, "bytes": None}],
        }
    ],
    "refusal": None,
}
NOTE = {
    "type": "url_citation",
    "url_citation": {"url": "http://x", "title": "x", "start_index": 0, "end_index": 1},
}


def answer(request: dict[str, Any]) -> Script:
    """What the model answers to `request`, streamed if asked for."""
    choices = [choice(request, index) for index in range(request.get("n") or 1)]
    if request.get("stream"):
        return Script(sse(*chunks(choices), "[DONE]"), headers={"content-type": "text/event-stream"})
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    return Script([json.dumps({**body, **EXTRAS, "usage": USAGE}).encode()])


def choice(request: dict[str, Any], index: int) -> dict[str, Any]:
    message, finish_reason = _message(request)
    logprobs = LOGPROBS if request.get("logprobs") else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def _message(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    last = request["messages"][-1]
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if "forbidden" in str(last["content"]):
        return {**message, "refusal": "I will not"}, "stop"
    if last["role"] == "tool":
        results = [m["content"] for m in request["messages"] if m["role"] == "tool"]
        return {**message, "content": " and ".join(results), "annotations": [NOTE]}, "stop"
    if request.get("tools"):
        return {**message, "tool_calls": [call(1, "Oslo"), call(2, "Rome")]}, "tool_calls"
    if request.get("reasoning_effort"):
        message["reasoning_content"] = "two and two"
    return {**message, "content": "four"}, "stop"


def call(number: int, city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return {"id": f"call_{number}", "type": "function", "function": function}


def chunks(choices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The choices piece by piece, arguments of tools cut in two, and the usage last."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", **EXTRAS}
    for each in choices:
        for delta in deltas(each["message"]):
            piece = {
                "index": each["index"],
                "delta": delta,
                "logprobs": each["logprobs"],
                "finish_reason": None,
            }
            yield {**head, "choices": [piece]}
    for each in choices:
        piece = {"index": each["index"], "delta": {}, "finish_reason": each["finish_reason"]}
        yield {**head, "choices": [piece]}
    yield {**head, "choices": [], "usage": USAGE}


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None}
    for key in ("reasoning_content", "content", "refusal"):
        if message.get(key):
            yield {key: message[key]}
    for index, tool in enumerate(message.get("tool_calls", ())):
        name, arguments = tool["function"]["name"], tool["function"]["arguments"]
        yield {
            "tool_calls": [{**tool, "index": index, "function": {"name": name, "arguments": arguments[:5]}}]
        }
        yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[5:]}}]}
