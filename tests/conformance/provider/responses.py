"""The scripted provider's Responses API, as OpenAI documents it; it stores nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tests.conformance.provider.chat import EVENTS, image_of, refuse
from tests.conformance.provider.conversation import Answer, Asked, Call, Json, Said
from tests.support.responses_provider import events, sse_of
from tests.support.upstream import Script

__all__ = ["PARAMETERS", "read", "refuse", "write"]
PARAMETERS = {*ResponseCreateParamsBase.__annotations__, "stream", "client_metadata"}
"""The documented ones, and one that codex sends."""


def read(request: Json) -> Asked:
    items = request["input"]
    assert request.get("previous_response_id") is None, "nothing is stored here"
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    said = [Said("system", request["instructions"])] if request.get("instructions") else []
    said += _merged(items)
    tools = {tool["name"]: tool.get("parameters") for tool in request.get("tools") or () if "name" in tool}
    choice = request.get("tool_choice")
    forced = choice.get("name") if isinstance(choice, dict) else None
    if choice == "required":
        forced = next(iter(tools))
    wanted = (request.get("text") or {}).get("format") or {}
    schema = wanted.get("schema") if wanted.get("type") == "json_schema" else None
    effort = (request.get("reasoning") or {}).get("effort")
    return Asked("responses", request["model"], tuple(said), tools, forced, schema, bool(effort))


def _merged(items: list[Json]) -> list[Said]:
    """The items as messages; reasoning, text and calls of the model in a row are one message."""
    said: list[Said] = []
    for item in items:
        new = _said(item)
        if new.role == "assistant" and said and said[-1].role == "assistant":
            old = said.pop()
            new = Said(
                "assistant",
                old.text + new.text,
                calls=old.calls + new.calls,
                thought=old.thought or new.thought,
                signature=old.signature or new.signature,
            )
        said.append(new)
    return said


def _said(item: Json) -> Said:
    kind = item.get("type", "message")
    if kind == "reasoning":
        thought = "".join(part["text"] for part in item.get("summary") or ())
        return Said("assistant", thought=thought or None, signature=item.get("encrypted_content"))
    if kind in ("function_call", "custom_tool_call"):
        text = item["arguments"] if kind == "function_call" else item["input"]
        call = Call(item["call_id"], item["name"], text, kind == "custom_tool_call")
        return Said("assistant", calls=(call,))
    parts = item["output"] if kind.endswith("_output") else item["content"]
    parts = [{"type": "input_text", "text": parts}] if isinstance(parts, str) else parts
    role = "tool" if kind.endswith("_output") else item["role"]
    role = "system" if role == "developer" else role
    images = tuple(image_of(part["image_url"]) for part in parts if part["type"] == "input_image")
    return Said(
        role, "\n".join(part["text"] for part in parts if "text" in part), images, answers=item.get("call_id")
    )


def write(answer: Answer, request: Json) -> Script:
    items = list(_items(answer, request))
    body: Json = {
        "id": f"resp_{answer.number}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": request["model"],
        "output": items,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools", []),
        "usage": _usage(answer),
    }
    if not request.get("stream"):
        return Script([json.dumps(body).encode()])
    return Script(sse_of(events(body)), headers=EVENTS)


def _items(answer: Answer, request: Json) -> Iterator[Json]:
    if answer.thought:
        summary = [{"type": "summary_text", "text": answer.thought}]
        item: Json = {"type": "reasoning", "id": f"rs_{answer.number}", "summary": summary}
        if "reasoning.encrypted_content" in (request.get("include") or ()):
            item["encrypted_content"] = answer.signature
        yield item
    if answer.text:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        message = {
            "type": "message",
            "id": f"msg_{answer.number}",
            "role": "assistant",
            "status": "completed",
        }
        yield {**message, "content": [part]}
    for call in answer.calls:
        kind, key = ("custom_tool_call", "input") if call.is_custom else ("function_call", "arguments")
        item = {"type": kind, "id": f"fc_{call.id}", "call_id": call.id, "name": call.name}
        yield {**item, key: call.arguments, "status": "completed"}


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached_read},
        "output_tokens": usage.reply,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.reply,
    }
