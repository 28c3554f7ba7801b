"""A provider's stream of Messages, read into the chunks of chat completions."""

from __future__ import annotations

from collections.abc import Iterable

from r2_serve.dialects.messages.replies import NAME, finish_reason, usage_of
from r2_serve.dialects.shapes import as_object
from r2_serve.types import Json


class EventsRead:
    """Reads one stream. Each event stands in its chunk, so that nothing of it is lost."""

    def __init__(self) -> None:
        self._blocks: dict[object, Json] = {}
        """The blocks so far, by index; the thoughts of a block are joined in it."""
        self._num_calls = 0
        self._usage: Json = {}

    def __call__(self, event: Json) -> Iterable[Json] | None:
        """The chunks of an event; None for the one that ends the stream."""
        kind = event.get("type")
        if kind == "message_stop":
            return None
        if kind == "ping":
            return ()
        if kind == "error" or "error" in event:
            return ({"error": event.get("error") or event},)
        chunk: Json = {"choices": [], NAME: event}
        if (choice := self._choice(str(kind), event)) is not None:
            chunk["choices"] = [{"index": 0, "finish_reason": None, **choice}]
        if usage := self._reported(str(kind), event):
            chunk["usage"] = usage
        return (chunk,)

    def _choice(self, kind: str, event: Json) -> Json | None:
        match kind:
            case "message_start":
                return {"delta": {"role": "assistant", "content": ""}}
            case "content_block_start":
                delta = self._started(event.get("index"), as_object(event.get("content_block")))
                return delta and {"delta": delta}
            case "content_block_delta":
                delta = self._grown(self._blocks.get(event.get("index"), {}), as_object(event.get("delta")))
                return delta and {"delta": delta}
            case "content_block_stop":
                block = self._blocks.get(event.get("index"), {})
                return {"delta": {"thinking_blocks": [block]}} if block.get("type") == "thinking" else None
            case "message_delta" if reason := finish_reason(as_object(event.get("delta")).get("stop_reason")):
                return {"delta": {}, "finish_reason": reason}
        return None

    def _started(self, index: object, block: Json) -> Json | None:
        self._blocks[index] = block = dict(block)
        match block.get("type"):
            case "tool_use":
                block["call"] = self._num_calls
                self._num_calls += 1
                function = {"name": block.get("name"), "arguments": ""}
                call = {"index": block["call"], "id": block.get("id"), "type": "function"}
                return {"tool_calls": [{**call, "function": function}]}
            case "redacted_thinking":
                return {"thinking_blocks": [block]}
            case "text" if block.get("text"):
                return {"content": block["text"]}
        return None

    def _grown(self, block: Json, delta: Json) -> Json | None:
        match delta.get("type"):
            case "text_delta":
                return {"content": delta.get("text")}
            case "thinking_delta" | "signature_delta" as kind:
                name = kind.removesuffix("_delta")
                block[name] = f"{block.get(name) or ''}{delta.get(name) or ''}"
                return {"reasoning_content": delta.get(name)} if name == "thinking" else None
            case "input_json_delta" if block.get("type") == "tool_use":
                arguments = {"arguments": delta.get("partial_json")}
                return {"tool_calls": [{"index": block["call"], "function": arguments}]}
        return None

    def _reported(self, kind: str, event: Json) -> Json:
        """The usage in total. The output of `message_start` is not the whole, so it is left out."""
        given = event.get("usage")
        if kind == "message_start":
            given = as_object(event.get("message")).get("usage")
            given = {**given, "output_tokens": None} if isinstance(given, dict) else None
        if not isinstance(given, dict):
            return {}
        self._usage |= {name: value for name, value in given.items() if value is not None}
        return usage_of(self._usage)
