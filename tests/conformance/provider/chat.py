"""The scripted provider's chat completions, as OpenAI documents them; reasoning as DeepSeek writes it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from tests.conformance.provider.conversation import Answer, Asked, Call, Json, Refusal, Said
from tests.support.upstream import Script, sse

EVENTS = {"content-type": "text/event-stream"}


PARAMETERS = {*CompletionCreateParamsBase.__annotations__, "stream"}


def read(request: Json) -> Asked:
    tools = {
        tool["function"]["name"]: tool["function"].get("parameters", {})
        for tool in request.get("tools") or ()
    }
    choice = request.get("tool_choice")
    forced = choice["function"]["name"] if isinstance(choice, dict) else None
    if choice == "required":
        forced = next(iter(tools))
    wanted = request.get("response_format") or {}
    schema = wanted.get("json_schema", {}).get("schema") if wanted.get("type") == "json_schema" else None
    return Asked(
        "chat",
        request["model"],
        tuple(_said(message) for message in request["messages"]),
        tools,
        forced,
        {"type": "object"} if wanted.get("type") == "json_object" else schema,
        request.get("reasoning_effort") not in (None, "none"),
    )


def _said(message: Json) -> Said:
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    calls = tuple(
        Call(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    images = tuple(image_of(part["image_url"]["url"]) for part in parts if part["type"] == "image_url")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    marked = any("cache_control" in part for part in parts)
    thought, answers = message.get("reasoning_content"), message.get("tool_call_id")
    return Said(role, text, images, calls, answers, thought, is_marked=marked)


def image_of(url: str) -> str:
    """`MEDIA_TYPE of N bytes`."""
    head, _, data = url.partition(";base64,")
    return f"{head.removeprefix('data:')} of {len(base64.b64decode(data, validate=True))} bytes"


def refuse(refusal: Refusal) -> Script:
    kind = "rate_limit_exceeded" if refusal.status == 429 else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "param": None, "code": kind}
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return Script([json.dumps({"error": error}).encode()], refusal.status, headers)


def write(answer: Answer, request: Json) -> Script:
    head = {
        "id": f"chatcmpl-{answer.number}",
        "created": 1,
        "model": request["model"],
        "system_fingerprint": "fp_1",
    }
    if request.get("stream"):
        return Script(sse(*_chunks(answer, head, request), "[DONE]"), headers=EVENTS)
    message: Json = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.thought:
        message["reasoning_content"] = answer.thought
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
    body = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}
    return Script([json.dumps(body).encode()])


def _chunks(answer: Answer, head: Json, request: Json) -> Iterator[Json]:
    for delta in [*_deltas(answer), {}]:
        reason = None if delta else _reason(answer)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        yield {**head, "object": "chat.completion.chunk", "choices": [choice]}
    if (request.get("stream_options") or {}).get("include_usage"):
        yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}


def _deltas(answer: Answer) -> Iterator[Json]:
    yield {"role": "assistant", "content": None if answer.calls else ""}
    for name, text in (("reasoning_content", answer.thought), ("content", answer.text)):
        yield from ({name: piece} for piece in pieces(text))
    for index, call in enumerate(answer.calls):
        yield {"tool_calls": [{"index": index, **_call(call, arguments="")}]}
        for piece in pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def pieces(text: str) -> Iterator[str]:
    """The text in parts, as a stream has them: three at most."""
    length = max(len(text) // 3 + 1, 4)
    yield from (text[i : i + length] for i in range(0, len(text), length))


def _call(call: Call, arguments: str | None = None) -> Json:
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"id": call.id, "type": "function", "function": function}


def _reason(answer: Answer) -> str:
    return "tool_calls" if answer.calls else "stop"


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.reply,
        "total_tokens": usage.prompt + usage.reply,
        "prompt_tokens_details": {"cached_tokens": usage.cached_read},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
