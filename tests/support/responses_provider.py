"""A scripted provider of OpenAI's Responses API: it thinks in secret, calls tools, searches and refuses.

`answer` is a script of `tests.support.upstream`. It keeps nothing, as providers do with `store: false`, and
refuses what it cannot know: a reference to an item, and a thought that it has not sealed itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.upstream import Script

USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 768, "cache_write_tokens": 0},
    "output_tokens": 60,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 1060,
}
SEALED = "gAAAA-sealed-by-the-provider"
"""Encrypted content that this provider has made."""
EXTRAS = {"service_tier": "flex", "x_unknown": {"kept": True}}
CITATION = {"type": "url_citation", "url": "http://x", "title": "x", "start_index": 0, "end_index": 4}


def answer(request: dict[str, Any]) -> Script:
    """What the model answers to `request`, streamed if asked for."""
    fault = _fault(request)
    if fault:
        return Script([json.dumps({"error": fault}).encode()], status=400)
    response = make_response(request)
    if request.get("stream"):
        return Script(sse_of(events(response)), headers={"content-type": "text/event-stream"})
    return Script([json.dumps(response).encode()])


def make_response(request: dict[str, Any]) -> dict[str, Any]:
    is_cut = (request.get("max_output_tokens") or 16) < 16
    return {
        "id": "resp_of_provider",
        "object": "response",
        "created_at": 1,
        "model": request["model"],
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None,
        "output": list(output(request)),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": request.get("tools") or [],
        "usage": USAGE,
        **EXTRAS,
    }


def output(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    items = request["input"] if isinstance(request["input"], list) else []
    if request.get("reasoning"):
        yield _thought("reasoning.encrypted_content" in (request.get("include") or ()))
    results = [_text_of(item["output"]) for item in items if "output" in item]
    tools = {tool["type"]: tool for tool in request.get("tools") or ()}
    if "forbidden" in json.dumps(request["input"]):
        yield message({"type": "refusal", "refusal": "I will not"})
    elif results:
        yield message(_text(" and ".join(results)))
    elif "custom" in tools:
        yield {**_call("ctc_1", "custom_tool_call", 1, tools["custom"]["name"]), "input": "free text"}
    elif "function" in tools:
        for number, city in ((1, "Oslo"), (2, "Rome")):
            item = _call(f"fc_{number}", "function_call", number, tools["function"]["name"])
            yield {**item, "arguments": json.dumps({"city": city})}
    elif "web_search" in tools:
        found = {"type": "search", "query": "two and two"}
        yield {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": found}
        yield message({**_text("four"), "annotations": [CITATION]})
    elif (request.get("text") or {}).get("format", {}).get("type") == "json_schema":
        yield message(_text('{"city": "Oslo"}'))
    else:
        yield message(_text("four"))


def message(part: dict[str, Any]) -> dict[str, Any]:
    body = {"role": "assistant", "content": [part], "phase": "final_answer"}
    return {"id": "msg_1", "type": "message", "status": "completed", **body}


def events(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The typed events of a streamed response."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item_events(item, index)
    yield {"type": f"response.{response['status']}", "response": response}


def _item_events(item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    at = {"output_index": index}
    empty = {"content": [], "summary": [], "arguments": "", "input": ""}
    begun = {**item, "status": "in_progress", **{key: empty[key] for key in empty if key in item}}
    yield {"type": "response.output_item.added", **at, "item": begun}
    at["item_id"] = item["id"]
    for kind, key in (("function_call_arguments", "arguments"), ("custom_tool_call_input", "input")):
        if text := item.get(key):
            yield {"type": f"response.{kind}.delta", **at, "delta": text[:5]}
            yield {"type": f"response.{kind}.delta", **at, "delta": text[5:]}
            yield {"type": f"response.{kind}.done", **at, key: text, "name": item["name"]}
    for summary_index, part in enumerate(item.get("summary", ())):
        place = {**at, "summary_index": summary_index}
        yield {"type": "response.reasoning_summary_part.added", **place, "part": {**part, "text": ""}}
        yield {"type": "response.reasoning_summary_text.delta", **place, "delta": part["text"]}
        yield {"type": "response.reasoning_summary_text.done", **place, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **place, "part": part}
    for content_index, part in enumerate(item.get("content", ())):
        yield from _part_events(part, {**at, "content_index": content_index})
    if item["type"] == "web_search_call":
        yield {"type": "response.web_search_call.searching", **at}
        yield {"type": "response.web_search_call.completed", **at}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part_events(part: dict[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind, key = part["type"], "refusal" if part["type"] == "refusal" else "text"
    more = {"logprobs": []} if key == "text" else {}
    notes = part.get("annotations") or ()
    empty = {**part, key: "", **({"annotations": []} if notes else {})}
    yield {"type": "response.content_part.added", **place, "part": empty}
    for piece in (part[key][:2], part[key][2:]):
        yield {"type": f"response.{kind}.delta", **place, "delta": piece, **more}
    for index, note in enumerate(notes):
        note_at = {**place, "annotation_index": index, "annotation": note}
        yield {"type": "response.output_text.annotation.added", **note_at}
    yield {"type": f"response.{kind}.done", **place, key: part[key], **more}
    yield {"type": "response.content_part.done", **place, "part": part}


def sse_of(made: Iterator[dict[str, Any]]) -> list[bytes]:
    numbered = ({**event, "sequence_number": number} for number, event in enumerate(made))
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in numbered]


def _thought(is_sealed: bool) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": "two and two"}]
    thought: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": summary}
    return {**thought, "encrypted_content": SEALED} if is_sealed else thought


def _call(item_id: str, kind: str, number: int, name: str) -> dict[str, Any]:
    return {"id": item_id, "type": kind, "status": "completed", "call_id": f"call_{number}", "name": name}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(part.get("text", "") for part in value)


def _fault(request: dict[str, Any]) -> dict[str, Any] | None:
    """OpenAI's own errors for what it does not take."""
    include = request.get("include") or ()
    if "reasoning.encrypted_content" in include and request["model"].startswith("plain"):
        return _error("Encrypted content is not supported with this model.", "include")
    items = request["input"] if isinstance(request["input"], list) else []
    for position, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "item_reference" or (kind == "reasoning" and item.get("encrypted_content") != SEALED):
            text = f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set"
            return _error(f"{text} to false.", f"input[{position}]")
    unknown = request.keys() & {"messages", "max_tokens", "max_completion_tokens", "reasoning_effort", "r2"}
    if unknown:
        return _error(f"Unknown parameter: '{sorted(unknown)[0]}'.", sorted(unknown)[0])
    return None


def _error(text: str, param: str) -> dict[str, Any]:
    return {"message": text, "type": "invalid_request_error", "param": param, "code": None}
