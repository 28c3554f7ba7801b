"""The scripted provider's Responses API, as OpenAI documents it; it stores nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tests.conformance.provider.chat import EVENTS, image_of, pieces, refuse
from tests.conformance.provider.conversation import Answer, Asked, Call, Json, Said
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
    events = [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
        for number, event in enumerate(_events(body))
    ]
    return Script(events, headers=EVENTS)


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


def _events(body: Json) -> Iterator[Json]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(body["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        empty, events = _pieces_of(item)
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield from ({**event, **at} for event in events)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": body}


def _pieces_of(item: Json) -> tuple[Json, list[Json]]:
    """The item as it begins, and the events that fill it."""
    if item["type"] == "message":
        (part,) = item["content"]
        return {**item, "status": "in_progress", "content": []}, list(_text_events(part))
    if item["type"] == "reasoning":
        (part,) = item["summary"]
        return {**item, "summary": []}, list(_summary_events(part))
    kind, key = (
        ("custom_tool_call_input", "input") if "input" in item else ("function_call_arguments", "arguments")
    )
    deltas = [{"type": f"response.{kind}.delta", "delta": piece} for piece in pieces(item[key])]
    done = {"type": f"response.{kind}.done", key: item[key], "name": item["name"]}
    return {**item, key: "", "status": "in_progress"}, [*deltas, done]


def _text_events(part: Json) -> Iterator[Json]:
    at = {"content_index": 0}
    yield {"type": "response.content_part.added", "part": {**part, "text": ""}, **at}
    for piece in pieces(part["text"]):
        yield {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **at}
    yield {"type": "response.output_text.done", "text": part["text"], "logprobs": [], **at}
    yield {"type": "response.content_part.done", "part": part, **at}


def _summary_events(part: Json) -> Iterator[Json]:
    at = {"summary_index": 0}
    yield {"type": "response.reasoning_summary_part.added", "part": {**part, "text": ""}, **at}
    for piece in pieces(part["text"]):
        yield {"type": "response.reasoning_summary_text.delta", "delta": piece, **at}
    yield {"type": "response.reasoning_summary_text.done", "text": part["text"], **at}
    yield {"type": "response.reasoning_summary_part.done", "part": part, **at}


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached_read},
        "output_tokens": usage.reply,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.reply,
    }
