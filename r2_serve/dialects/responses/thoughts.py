"""Thoughts: reasoning items of the Responses API as keys of a chat message, and back.

A chat message holds thoughts as text in `reasoning_content`, and as blocks that only their provider can read
in `reasoning_details` (https://openrouter.ai/docs/use-cases/reasoning-tokens). OpenAI's encrypted items are
such blocks. The other way round, the blocks of any other provider travel in `encrypted_content`, which
clients of the Responses API send back unread.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping

from r2_serve.dialects.responses.shapes import as_objects
from r2_serve.types import Json

OPENAI_FORMAT = "openai-responses-v1"
"""OpenRouter's name of the blocks that are items of OpenAI's Responses API."""
SEALED = "r2.v1."
"""The beginning of an `encrypted_content` that holds keys of a chat message and no item of OpenAI's."""
KEYS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
"""Keys of a chat message that hold thoughts."""


def thoughts_of(item: Json) -> Json:
    """A reasoning item as keys of a chat message."""
    encrypted = item.get("encrypted_content")
    if isinstance(encrypted, str) and (found := _unsealed(encrypted)) is not None:
        return found
    common = {"format": OPENAI_FORMAT, **({"id": item["id"]} if item.get("id") else {})}
    details: list[Json] = [
        {"type": "reasoning.summary", "summary": text, **common} for text in _texts(item.get("summary"))
    ]
    if isinstance(encrypted, str):
        details.append({"type": "reasoning.encrypted", "data": encrypted, **common})
    text = "".join(_texts(item.get("content")))
    return {
        **({"reasoning_content": text} if text else {}),
        **({"reasoning_details": details} if details else {}),
    }


def shown_thoughts(item: Json) -> Json:
    """A provider's reasoning item as keys of a chat message, with its summary as text to show."""
    found = thoughts_of(item)
    summary = "\n\n".join(_texts(item.get("summary")))
    return {"reasoning_content": summary, **found} if summary else found


def join_thoughts(message: Json, thoughts: Json) -> None:
    """Adds the thoughts of one more item to a message."""
    for key, value in thoughts.items():
        known = message.get(key)
        if isinstance(known, str) and isinstance(value, str):
            message[key] = known + value
        elif isinstance(known, list) and isinstance(value, list):
            message[key] = [*known, *value]
        else:
            message[key] = value


def thought_items(message: Mapping[str, object]) -> list[Json]:
    """The reasoning items of a chat message: OpenAI's own as they were, all others sealed in one."""
    details = as_objects(message.get("reasoning_details"))
    known = [detail for detail in details if detail.get("format") == OPENAI_FORMAT]
    foreign = [detail for detail in details if detail.get("format") != OPENAI_FORMAT]
    kept = {key: message[key] for key in KEYS if message.get(key) and key != "reasoning_details"}
    if foreign:
        kept["reasoning_details"] = foreign
    return [*_openai_items(known), *([sealed_item(kept)] if kept else [])]


def sealed_item(keys: Json) -> Json:
    """The item of thoughts that are not OpenAI's."""
    text = keys.get("reasoning_content") or keys.get("reasoning")
    content: Json = {"content": [{"type": "reasoning_text", "text": text}]} if text else {}
    return {"type": "reasoning", "summary": [], **content, "encrypted_content": sealed(keys)}


def sealed(keys: Json) -> str:
    """The `encrypted_content` that holds keys of a chat message. It is not secret: the client saw them."""
    return SEALED + base64.b64encode(json.dumps(keys).encode()).decode()


def is_foreign(item: Json) -> bool:
    """Whether a reasoning item was not made by a provider of the Responses API, so that none reads it."""
    encrypted = item.get("encrypted_content")
    return isinstance(encrypted, str) and encrypted.startswith(SEALED)


def _unsealed(encrypted: str) -> Json | None:
    if not encrypted.startswith(SEALED):
        return None
    try:
        keys = json.loads(base64.b64decode(encrypted.removeprefix(SEALED), validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return {key: keys[key] for key in KEYS if key in keys} if isinstance(keys, dict) else {}


def _openai_items(details: Iterable[Json]) -> list[Json]:
    items: dict[object, Json] = {}
    for detail in details:
        head: Json = {"id": detail["id"]} if detail.get("id") else {}
        item = items.setdefault(detail.get("id"), {"type": "reasoning", **head, "summary": []})
        summary = item["summary"]
        if detail.get("type") == "reasoning.encrypted":
            item["encrypted_content"] = detail.get("data")
        elif isinstance(summary, list):
            summary.append({"type": "summary_text", "text": detail.get("summary") or detail.get("text")})
    return list(items.values())


def _texts(parts: object) -> list[str]:
    found = [part.get("text") for part in as_objects(parts)]
    return [text for text in found if isinstance(text, str)]
