"""Replies of a provider that speaks the Responses API, read as chat completions and their chunks.

What the provider sent stands beside the chat completion under `NAME`, for clients that speak this API too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from r2_serve.dialects.responses.history import call_item_as_chat
from r2_serve.dialects.responses.thoughts import details_of, shown_thoughts
from r2_serve.dialects.sealing import join_thoughts
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.types import Json

NAME = "responses"
_CUT = {"max_output_tokens": "length", "content_filter": "content_filter"}
_ENDS = frozenset({"response.completed", "response.incomplete"})
_CALLS = ("function_call", "custom_tool_call")
_TEXTS = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning_content",
    "response.reasoning_summary_text.delta": "reasoning_content",
}
_ARGUMENTS = {
    "response.function_call_arguments.delta": ("function", "arguments"),
    "response.custom_tool_call_input.delta": ("custom", "input"),
}


def completion_of(response: Json) -> Json:
    """A whole response as a chat completion; a failed one as an error."""
    if response.get("status") not in ("completed", "incomplete"):
        return {"error": error_of(response), "usage": usage_of(response)}
    items = as_objects(response.get("output"))
    choice = {"index": 0, "message": _message(items), "finish_reason": _reason(response, bool(_calls(items)))}
    logprobs = [token for part in _texts(items) for token in as_objects(part.get("logprobs"))]
    return {
        "object": "chat.completion",
        "choices": [{**choice, "logprobs": {"content": logprobs, "refusal": None} if logprobs else None}],
        "usage": usage_of(response),
        **_extras(response),
        NAME: response,
    }


class EventsRead:
    """Reads one stream. Each event stands in its chunk, so that nothing of it is lost."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}
        """The number of each call, by the number of its item."""

    def __call__(self, event: Json) -> Iterable[Json] | None:
        """The chunks of an event."""
        kind = str(event.get("type"))
        if kind == "error" or "error" in event:
            return ({"error": event.get("error") or event},)
        if kind in ("response.failed", "response.cancelled"):
            response = as_object(event.get("response"))
            return ({"error": error_of(response), "usage": usage_of(response)},)
        choices = [{"index": 0, "finish_reason": None, **choice} for choice in self._choices(kind, event)]
        chunk: Json = {"choices": choices, NAME: event}
        if kind in _ENDS:
            response = as_object(event.get("response"))
            chunk |= {"usage": usage_of(response), **_extras(response)}
        return (chunk,)

    def _choices(self, kind: str, event: Json) -> Iterator[Json]:
        item = as_object(event.get("item"))
        if kind == "response.created":
            yield {"delta": {"role": "assistant", "content": ""}}
        elif kind in _TEXTS:
            logprobs = as_objects(event.get("logprobs"))
            more: Json = {"logprobs": {"content": logprobs}} if logprobs else {}
            yield {"delta": {_TEXTS[kind]: event.get("delta")}, **more}
        elif kind in _ARGUMENTS:
            held, key = _ARGUMENTS[kind]
            number = self._calls.get(str(event.get("output_index")), 0)
            yield {"delta": {"tool_calls": [{"index": number, held: {key: event.get("delta")}}]}}
        elif kind == "response.output_item.added" and item.get("type") in _CALLS:
            number = self._calls[str(event.get("output_index"))] = len(self._calls)
            yield {"delta": {"tool_calls": [{"index": number, **call_item_as_chat(item)}]}}
        elif kind == "response.output_item.done" and item.get("type") == "reasoning":
            if details := details_of(item):
                yield {"delta": details}
        elif kind == "response.output_text.annotation.added":
            yield {"delta": {"annotations": [_annotation(as_object(event.get("annotation")))]}}
        elif kind in _ENDS:
            reason = _reason(as_object(event.get("response")), bool(self._calls))
            yield {"delta": {}, "finish_reason": reason}


def usage_of(response: Json) -> Json | None:
    """`usage` in the names of chat completions."""
    usage = as_object(response.get("usage"))
    if not usage:
        return None
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "total_tokens": usage.get("total_tokens"),
        "prompt_tokens_details": as_object(usage.get("input_tokens_details")),
        "completion_tokens_details": as_object(usage.get("output_tokens_details")),
    }


def error_of(response: Json) -> Json:
    """The error of a response that failed."""
    error = as_object(response.get("error"))
    text = error.get("message") or f"the response ended with status {response.get('status')}"
    return {**error, "message": text, "type": error.get("code")}


def _message(items: list[Json]) -> Json:
    texts, refusals = _texts(items), [part for part in _parts(items) if part.get("type") == "refusal"]
    message: Json = {
        "role": "assistant",
        "content": "".join(str(part.get("text")) for part in texts) if texts else None,
        "refusal": "".join(str(part.get("refusal")) for part in refusals) or None,
    }
    for item in items:
        if item.get("type") == "reasoning":
            join_thoughts(message, shown_thoughts(item))
    notes = [_annotation(note) for part in texts for note in as_objects(part.get("annotations"))]
    calls = [call_item_as_chat(item) for item in _calls(items)]
    return message | ({"annotations": notes} if notes else {}) | ({"tool_calls": calls} if calls else {})


def _parts(items: list[Json]) -> Iterator[Json]:
    for item in items:
        if item.get("type") == "message":
            yield from as_objects(item.get("content"))


def _texts(items: list[Json]) -> list[Json]:
    return [part for part in _parts(items) if part.get("type") == "output_text"]


def _calls(items: list[Json]) -> list[Json]:
    return [item for item in items if item.get("type") in _CALLS]


def _annotation(note: Json) -> Json:
    """A citation, whose fields chat completions put into an object of their own."""
    kind = str(note.get("type"))
    return {"type": kind, kind: {key: note[key] for key in note if key != "type"}}


def _reason(response: Json, has_calls: bool) -> str:
    if response.get("status") == "incomplete":
        reason = as_object(response.get("incomplete_details")).get("reason")
        return _CUT.get(str(reason), "length")
    return "tool_calls" if has_calls else "stop"


def _extras(response: Json) -> Json:
    return {key: response[key] for key in ("service_tier",) if response.get(key) is not None}
