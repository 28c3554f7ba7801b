"""Signs in a conversation that the model of its tool loop fails at the task. No Ray.

Only what the client sends back is read, so each router replica comes to the same verdict. Arguments are
checked against the tool's schema as far as its types, required keys, values and items go: patterns,
references and alternatives could make the check slow, so they count as met."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from r2_serve.types import Json, Message

NUM_REPEATS = 3
"""Equal turns in a row that show a loop without progress. Two are often a retry."""
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": (int, float),
    "number": (int, float),
    "null": type(None),
}


def sign_of_failure(messages: Sequence[Message], tools: object) -> str | None:
    """What the model did wrong in its latest turn; None if nothing shows. `tools` is the request's."""
    latest = next((m for m in reversed(messages) if m.role == "assistant"), None)
    if latest is None:
        return None
    known = _schemas(tools)
    faults = (fault for name, text in _calls(latest) if (fault := _fault(name, text, known)) is not None)
    return next(faults, None) or _repetition(messages)


def _fault(name: str, arguments: str, known: Mapping[str, object]) -> str | None:
    if known and name not in known:
        return f"it called a tool that does not exist: {name[:60]!r}"
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return f"its arguments for {name!r} are not JSON"
    if not isinstance(value, dict):
        return f"its arguments for {name!r} are not an object"
    return None if _fits(value, known.get(name)) else f"its arguments for {name!r} do not fit the schema"


def _fits(value: object, schema: object) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    kinds = schema.get("type")
    if kinds is not None and not any(_is_of(value, kind) for kind in _listed(kinds)):
        return False
    values = schema.get("enum")
    if isinstance(values, list) and value not in values:
        return False
    if isinstance(value, list):
        return all(_fits(item, schema.get("items")) for item in value)
    return not isinstance(value, dict) or _object_fits(value, schema)


def _object_fits(value: Json, schema: Json) -> bool:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    has_required = all(name in value for name in _listed(schema.get("required")))
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    return (
        has_required
        and (is_open or value.keys() <= known.keys())
        and all(_fits(held, known.get(name)) for name, held in value.items())
    )


def _is_of(value: object, kind: object) -> bool:
    known = _TYPES.get(str(kind))
    if known is None:
        return True
    if isinstance(value, bool) or not isinstance(value, known):
        return kind == "boolean" and isinstance(value, bool)
    return kind != "integer" or not isinstance(value, float) or value.is_integer()


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _repetition(messages: Sequence[Message]) -> str | None:
    """Whether the latest turns called the same tools with the same arguments and got the same results."""
    turns = list(_turns(messages))[-NUM_REPEATS:]
    if len(turns) < NUM_REPEATS or any(turn != turns[0] for turn in turns):
        return None
    names = ", ".join(sorted({name for name, _ in turns[0][0]}))[:60]
    return f"it repeated the same call {NUM_REPEATS} times with the same result: {names}"


def _turns(messages: Iterable[Message]) -> Iterator[tuple[list[tuple[str, str]], list[str]]]:
    """Calls and results of each turn of tool calls since the last word of the user."""
    turns: list[tuple[list[tuple[str, str]], list[str]]] = []
    for message in messages:
        if message.role == "user":
            turns.clear()
        elif message.role == "assistant":
            turns.append((sorted(_calls(message)), []))
        elif message.role == "tool" and turns:
            turns[-1][1].append(message.text)
    return (turn for turn in turns if turn[0])


def _calls(message: Message) -> Iterator[tuple[str, str]]:
    """Name and arguments of each function that a message calls."""
    calls = message.more.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield str(function.get("name")), str(function.get("arguments") or "")


def _schemas(tools: object) -> dict[str, object]:
    """The schema of the arguments of each function in `tools`; empty if there is another kind of tool."""
    schemas: dict[str, object] = {}
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            return {}
        schemas[str(function.get("name"))] = function.get("parameters")
    return schemas
