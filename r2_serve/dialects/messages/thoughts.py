"""Thinking blocks made of the thoughts of a chat model, and back.

The text of the thoughts is the block's. What else their provider gave, such as encrypted details, travels in
the signature (`dialects.sealing`), which is empty where there is nothing else.
"""

from __future__ import annotations

from r2_serve.dialects.sealing import KEYS, sealed, unsealed
from r2_serve.types import Json


def keys_of(message: Json) -> Json:
    """The keys of a chat message or delta that hold thoughts."""
    return {key: message[key] for key in KEYS if message.get(key)}


def text_of(keys: Json) -> str:
    """The text of thoughts, by the two names that providers give it."""
    return str(keys.get("reasoning_content") or keys.get("reasoning") or "")


def signature_of(keys: Json) -> str:
    """The signature of a block; empty if its text says all."""
    return sealed(keys) if keys.keys() - {"reasoning_content"} else ""


def thoughts_in(block: Json) -> Json:
    """The keys of a chat message that a block was made of."""
    if (keys := unsealed(block.get("signature"))) is not None:
        return keys
    return {"reasoning_content": block["thinking"]} if block.get("thinking") else {}
