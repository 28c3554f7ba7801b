"""Thoughts: reasoning items of the Responses API as keys of a chat message, and back.

A chat message holds thoughts as text in `reasoning_content`, and as blocks that only their provider can read
in `reasoning_details` (https://openrouter.ai/docs/use-cases/reasoning-tokens). OpenAI's encrypted items are
such blocks. The other way round, the blocks of any other provider travel in `encrypted_content`
(`dialects.sealing`), which clients of the Responses API send back unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from r2_serve.dialects.sealing import KEYS, SEALED, sealed, unsealed
from r2_serve.dialects.shapes import as_objects
from r2_serve.types import Json

OPENAI_FORMAT = "openai-responses-v1"
"""OpenRouter's name of the blocks that are items of OpenAI's Responses API."""


def thoughts_of(item: Json) -> Json:
    """A reasoning item that a client sends back, as keys of a chat message.

    What OpenAI has sealed is left out: only an engine of its API reads it, and gets the item itself.
    """
    encrypted = item.get("encrypted_content")
    if (found := unsealed(encrypted)) is not None:
        return found
    text = "".join(_texts(item.get("content")))
    return {"reasoning_content": text} if text else {}


def shown_thoughts(item: Json) -> Json:
    """A provider's reasoning item as keys of a chat message: its text to show, and the item to send back."""
    summary = _texts(item.get("summary"))
    text = "".join(_texts(item.get("content"))) or "\n\n".join(summary)
    return {**({"reasoning_content": text} if text else {}), **details_of(item)}


def details_of(item: Json) -> Json:
    """The `reasoning_details` that say a provider's reasoning item."""
    common = {"format": OPENAI_FORMAT, **({"id": item["id"]} if item.get("id") else {})}
    details: list[Json] = [
        {"type": "reasoning.summary", "summary": text, **common} for text in _texts(item.get("summary"))
    ]
    if isinstance(encrypted := item.get("encrypted_content"), str):
        details.append({"type": "reasoning.encrypted", "data": encrypted, **common})
    return {"reasoning_details": details} if details else {}


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


def is_foreign(item: Json) -> bool:
    """Whether a reasoning item was not made by a provider of the Responses API, so that none reads it."""
    encrypted = item.get("encrypted_content")
    return isinstance(encrypted, str) and encrypted.startswith(SEALED)


def _openai_items(details: Iterable[Json]) -> list[Json]:
    items: dict[str, Json] = {}
    for detail in details:
        head: Json = {"id": detail["id"]} if detail.get("id") else {}
        item = items.setdefault(str(detail.get("id")), {"type": "reasoning", **head, "summary": []})
        summary = item["summary"]
        if detail.get("type") == "reasoning.encrypted":
            item["encrypted_content"] = detail.get("data")
        elif isinstance(summary, list):
            summary.append({"type": "summary_text", "text": detail.get("summary") or detail.get("text")})
    return list(items.values())


def _texts(parts: object) -> list[str]:
    found = [part.get("text") for part in as_objects(parts)]
    return [text for text in found if isinstance(text, str)]
