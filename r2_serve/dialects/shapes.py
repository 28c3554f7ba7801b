"""JSON of a wire whose shape is not checked yet."""

from __future__ import annotations

import json

from r2_serve.types import Json


def as_object(value: object) -> Json:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_objects(value: object) -> list[Json]:
    """The objects in a list; none if `value` is no list."""
    return [member for member in value if isinstance(member, dict)] if isinstance(value, list) else []


def object_in(text: str) -> Json:
    """The object that `text` spells, else an empty one."""
    try:
        return as_object(json.loads(text))
    except (ValueError, RecursionError):
        return {}
