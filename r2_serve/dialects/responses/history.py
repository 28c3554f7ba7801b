"""Messages of chat completions as items of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r2_serve.dialects.responses.parts import Unsayable, response_content
from r2_serve.dialects.responses.shapes import as_object, as_objects
from r2_serve.dialects.responses.thoughts import KEYS, thought_items
from r2_serve.types import Json

_READ = frozenset({"role", "content", "refusal", "tool_calls", "tool_call_id", "r2", *KEYS})
_NOTES = frozenset({"annotations", "cache_control"})
"""What a model's message says of itself, and hints that cannot change a reply."""


def items_of(messages: Sequence[Mapping[str, object]]) -> list[Json]:
    """The items of a conversation. An item as it came (`r2.items`) goes before the translation.

    Raises: Unsayable naming the field that the Responses API has no word for.
    """
    items: list[Json] = []
    customs = {call.get("id") for message in messages for call in _calls(message) if _is_custom(call)}
    for position, message in enumerate(messages):
        items += own_items(message) or message_items(message, f"messages.{position}", customs)
    return items


def own_items(message: Mapping[str, object]) -> list[Json]:
    """The items from which a message was read; none if the client spoke another dialect."""
    return as_objects(as_object(message.get("r2")).get("items"))


def message_items(
    message: Mapping[str, object], where: str, customs: frozenset[object] | set[object] = frozenset()
) -> list[Json]:
    """Raises: Unsayable."""
    for key, value in message.items():
        if value and key not in _READ and key not in _NOTES:
            raise Unsayable(f"{where}.{key}", f"the Responses API has no word for {key!r} of a message")
    role = str(message.get("role"))
    match role:
        case "tool":
            kind = "custom_tool_call" if message.get("tool_call_id") in customs else "function_call"
            output = response_content(message.get("content"), role, f"{where}.content")
            return [{"type": f"{kind}_output", "call_id": message.get("tool_call_id"), "output": output}]
        case "assistant":
            return _assistant_items(message, where)
        case "function":
            raise Unsayable(f"{where}.role", "the Responses API has no messages of the role 'function'")
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
    """A call of a function or of a custom tool. Raises: Unsayable for any other."""
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
    raise Unsayable(where, f"the Responses API has no tool call of type {call.get('type')!r}")


def _calls(message: Mapping[str, object]) -> list[Json]:
    return as_objects(message.get("tool_calls"))


def _is_custom(call: Json) -> bool:
    return "custom" in call
