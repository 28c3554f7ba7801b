"""Thoughts of a chat message in a field that other dialects send back unread.

A provider of chat completions gives thoughts under keys that only it reads (`reasoning_details`, ...).
Responses and Messages have one opaque field for such things: `encrypted_content` and `signature`. The keys
travel in it, and reach the provider again as it sent them.
"""

from __future__ import annotations

import base64
import binascii
import json

from r2_serve.types import Json

SEALED = "r2.v1."
"""The beginning of a field that holds keys of a chat message."""
KEYS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
"""Keys of a chat message that hold thoughts."""


def sealed(keys: Json) -> str:
    """The field that holds `keys`. It is not secret: the client saw them."""
    return SEALED + base64.b64encode(json.dumps(keys).encode()).decode()


def unsealed(field: object) -> Json | None:
    """The keys in a field; None if it holds none, being its own provider's."""
    if not isinstance(field, str) or not field.startswith(SEALED):
        return None
    try:
        keys = json.loads(base64.b64decode(field.removeprefix(SEALED), validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return {key: keys[key] for key in KEYS if key in keys} if isinstance(keys, dict) else {}


def join_thoughts(message: Json, thoughts: Json) -> None:
    """Adds further thoughts to those of a message."""
    for key, value in thoughts.items():
        known = message.get(key)
        if isinstance(known, str) and isinstance(value, str):
            message[key] = known + value
        elif isinstance(known, list) and isinstance(value, list):
            message[key] = [*known, *value]
        else:
            message[key] = value
