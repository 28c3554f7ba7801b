"""Items of the Responses API as messages of chat completions.

One assistant message holds what the API spreads over several items: thoughts, text and calls. What the
translation loses stays in the message's `r2.items`, the items as they came, for a provider that speaks this
dialect itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from r2_serve.dialects.responses.names import ToolNames, flat_name
from r2_serve.dialects.responses.parts import chat_content
from r2_serve.dialects.responses.thoughts import thoughts_of
from r2_serve.dialects.sealing import join_thoughts
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json

_CALLS = frozenset({"function_call", "custom_tool_call", "tool_search_call"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output", "tool_search_output"})


def item_kind(item: Json, where: str) -> str:
    """The type of an item, which may be left out of a message. Raises: InvalidRequest."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    if "role" in item:
        return "message"
    raise InvalidRequest(f"{where}.type is missing", f"{where}.type", "missing_required_parameter")


@dataclass
class Conversation:
    """Reads the items of a request, one after the other."""

    names: ToolNames
    is_native: bool
    """Whether the provider speaks the dialect itself, so that it reads what is not known here."""
    messages: list[Json] = field(default_factory=list)
    _open: Json | None = None
    """The assistant's message that the next item may continue."""

    def read(self, items: Sequence[object]) -> list[Json]:
        """The messages. Raises: InvalidRequest naming the item that cannot be said."""
        for position, item in enumerate(items):
            where = f"input.{position}"
            if not isinstance(item, dict):
                raise InvalidRequest(f"{where} must be an object", where, "invalid_type")
            self._take(item, item_kind(item, where), where)
        return self.messages

    def _take(self, item: Json, kind: str, where: str) -> None:
        if kind == "message" and item.get("role") != "assistant":
            content = chat_content(item.get("content"), f"{where}.content")
            self._append({"role": _role(item, where), "content": content}, item)
        elif kind in ("message", "reasoning") or kind in _CALLS:
            self._continue(item, kind, where)
        elif kind in _OUTPUTS:
            self._append(self._output(item, kind, where), item)
        elif kind == "additional_tools":
            self.names.add(as_objects(item.get("tools")), f"{where}.tools")
            if self.is_native:
                self._append({"role": "developer", "content": ""}, item)
        elif self.is_native:
            self._append({"role": "assistant", "content": ""}, item)
        else:
            message = (
                f"{where}: an item of type {kind!r} is understood by a model whose engine is of kind "
                "openai-responses alone; leave it out"
            )
            raise InvalidRequest(message, where, "unsupported_value")

    def _append(self, message: Json, item: Json) -> None:
        self._open = None
        self.messages.append({**message, "r2": {"items": [item]}})

    def _continue(self, item: Json, kind: str, where: str) -> None:
        """Joins an item of the assistant to its message, or begins one."""
        message = self._open
        if message is None or not _takes(message, kind):
            message = self._open = {"role": "assistant", "content": None, "r2": {"items": []}}
            self.messages.append(message)
        _items(message).append(item)
        if kind == "reasoning":
            join_thoughts(message, thoughts_of(item))
        elif kind == "message":
            _join_content(message, chat_content(item.get("content"), f"{where}.content"))
        else:
            message["tool_calls"] = [*as_objects(message.get("tool_calls")), _call(item, kind, where)]

    def _output(self, item: Json, kind: str, where: str) -> Json:
        call_id = _text(item, "call_id", where)
        if kind == "tool_search_output":
            found = as_objects(item.get("tools"))
            self.names.add(found, f"{where}.tools")
            return {"role": "tool", "tool_call_id": call_id, "content": json.dumps(found)}
        content = chat_content(item.get("output"), f"{where}.output")
        return {"role": "tool", "tool_call_id": call_id, "content": content}


def _takes(message: Json, kind: str) -> bool:
    """Whether a message goes on: its calls are open still, or thoughts, text and calls follow in order."""
    is_first = message["content"] is None and "refusal" not in message
    return "tool_calls" in message or kind in _CALLS or is_first


def _call(item: Json, kind: str, where: str) -> Json:
    if kind == "tool_search_call":
        name, arguments = "tool_search", json.dumps(item.get("arguments"))
    else:
        name = flat_name(_text(item, "name", where), item.get("namespace"))
        is_custom = kind == "custom_tool_call"
        text = _text(item, "input" if is_custom else "arguments", where)
        arguments = json.dumps({"input": text}) if is_custom else text
    function = {"name": name, "arguments": arguments}
    return {"id": _text(item, "call_id", where), "type": "function", "function": function}


def _join_content(message: Json, content: str | list[Json] | None) -> None:
    match content:
        case [{"type": "refusal", "refusal": refusal}] if message["content"] is None:
            message["refusal"] = refusal
        case _ if message["content"] is None:
            message["content"] = content
        case _:
            message["content"] = [*_as_parts(message["content"]), *_as_parts(content)]


def _as_parts(content: object) -> Iterator[Json]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    else:
        yield from as_objects(content)


def _role(item: Json, where: str) -> str:
    role = item.get("role")
    if role not in ("user", "system", "developer"):
        text = f"{where}.role: got {str(role)[:40]!r}, expected user, system, developer or assistant"
        raise InvalidRequest(text, f"{where}.role", "invalid_value")
    return str(role)


def _text(item: Json, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{key} is missing", f"{where}.{key}", "missing_required_parameter")
    return value


def _items(message: Json) -> list[Json]:
    items = as_object(message["r2"])["items"]
    assert isinstance(items, list)
    return items
