"""Messages of chat completions as items of the Responses API."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from r2_serve.dialects.responses.names import flat_name
from r2_serve.dialects.responses.parts import cannot_say, response_content
from r2_serve.dialects.responses.thoughts import thought_items
from r2_serve.dialects.sealing import KEYS
from r2_serve.dialects.shapes import as_objects
from r2_serve.types import Json, Message

_READ = frozenset({"role", "content", "refusal", "tool_calls", "tool_call_id", *KEYS})
_NOTES = frozenset({"annotations", "cache_control", "provider_specific_fields"})
"""What a model's message says of itself, and hints that cannot change a reply. LiteLLM repeats fields of the
reply in `provider_specific_fields`."""


def items_of(messages: Sequence[Message]) -> list[Json]:
    """The items of a conversation. The items from which a message was read go before its translation.

    Raises: InvalidRequest naming the field that the Responses API has no word for.
    """
    items: list[Json] = []
    customs = [call.get("id") for message in messages for call in _calls(message.more) if "custom" in call]
    for position, message in enumerate(messages):
        own = message.items
        items += message_items(message.wire, f"messages.{position}", customs) if own is None else own
    return items


def message_items(message: Mapping[str, object], where: str, customs: Collection[object] = ()) -> list[Json]:
    """The items of one chat message; `customs` are the ids of the calls of custom tools.

    Raises: InvalidRequest.
    """
    for key, value in message.items():
        if value and key not in _READ | _NOTES and (message["role"], key) != ("tool", "name"):
            raise cannot_say(f"{where}.{key}", f"{key!r} of a message")
    role = str(message.get("role"))
    match role:
        case "tool":
            kind = "custom_tool_call" if message.get("tool_call_id") in customs else "function_call"
            output = response_content(message.get("content"), role, f"{where}.content")
            return [{"type": f"{kind}_output", "call_id": message.get("tool_call_id"), "output": output}]
        case "assistant":
            return _assistant_items(message, where)
        case "function":
            raise cannot_say(f"{where}.role", "messages of the role 'function'")
    content = response_content(message.get("content"), role, f"{where}.content")
    return [{"type": "message", "role": role, "content": content}]


def _assistant_items(message: Mapping[str, object], where: str) -> list[Json]:
    calls = [call_item(call, f"{where}.tool_calls.{i}") for i, call in enumerate(_calls(message))]
    content = response_content(message.get("content"), "assistant", f"{where}.content")
    if message.get("refusal"):
        parts = [{"type": "output_text", "text": content, "annotations": []}] if content else []
        content = [*(parts if isinstance(content, str) else content), _refusal(message["refusal"])]
    thoughts = thought_items(message)
    is_empty = not content and (calls or thoughts)
    texts: list[Json] = [] if is_empty else [{"type": "message", "role": "assistant", "content": content}]
    return [*thoughts, *texts, *calls]


def _refusal(text: object) -> Json:
    return {"type": "refusal", "refusal": text}


def call_item(call: Json, where: str) -> Json:
    """A call of a function or of a custom tool. Raises: InvalidRequest for any other."""
    for kind, item, argument in (
        ("function", "function_call", "arguments"),
        ("custom", "custom_tool_call", "input"),
    ):
        held = call.get(kind)
        if isinstance(held, dict):
            return {
                "type": item,
                "call_id": call.get("id"),
                "name": held.get("name"),
                argument: held.get(argument) or "",
            }
    raise cannot_say(where, f"tool call of type {str(call.get('type'))[:40]!r}")


def call_item_as_chat(item: Json) -> Json:
    """An item of a call, as a provider sends it, as a tool call of chat completions."""
    is_custom = item.get("type") == "custom_tool_call"
    kind, key = ("custom", "input") if is_custom else ("function", "arguments")
    name = flat_name(str(item.get("name")), item.get("namespace"))
    return {"id": item.get("call_id"), "type": kind, kind: {"name": name, key: item.get(key) or ""}}


def _calls(message: Mapping[str, object]) -> list[Json]:
    return as_objects(message.get("tool_calls"))
