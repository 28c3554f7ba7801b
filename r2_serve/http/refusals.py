"""The wording of refused requests: pydantic's findings as one `InvalidRequest` in OpenAI's terms."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite

from pydantic_core import ErrorDetails

from r2_serve.errors import InvalidRequest, counted

NEVER_FORWARDED = frozenset(
    {"api_base", "api_key", "api_version", "base_url", "organization", "headers", "extra_headers"}
    | {"extra_body", "extra_query", "fallbacks", "models", "model_list", "custom_llm_provider"}
)
"""Parameters by which some gateways call another address or model; all others go to a hosted model."""


FIELDS_OF_R2 = frozenset({"max_cost_usd", "deadline_s", "max_subtasks", "plan_only"})
"""Fields of `r2` that no provider knows: beside `r2` they would be passed on and not be heeded."""


def check_forwarded(parameters: Iterable[str]) -> None:
    """Raises: InvalidRequest for a parameter that only the operator may set, or that belongs into `r2`."""
    for name in sorted(FIELDS_OF_R2.intersection(parameters)):
        message = f"{name} is a field of r2; did you mean r2.{name}?"
        raise InvalidRequest(message, name, "unsupported_parameter")
    for name in sorted(NEVER_FORWARDED.intersection(parameters)):
        message = f"{name} is not passed on: the operator alone chooses address, credentials and model"
        raise InvalidRequest(message, name, "unsupported_parameter")


def refusal(
    fault: ErrorDetails, known: Iterable[str] = (), fields: str = "model and messages"
) -> InvalidRequest:
    """`known` are the keys allowed in place of an unknown one; `fields` says what the body must hold."""
    kind, param, got = fault["type"], _param(fault["loc"]), shown(fault["input"])
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {fault['ctx']['error']}", code="invalid_json")
    if param is None:
        return InvalidRequest(f"the body must be a JSON object with {fields}, got {got}")
    if kind == "missing":
        return InvalidRequest(f"{param} is missing", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        hint = _suggestion(str(fault["loc"][-1])[:60], known)
        return InvalidRequest(f"unknown parameter {param}; {hint}", param, "unknown_parameter")
    if kind == "value_error":
        return InvalidRequest(f"{param}: {_cut(str(fault['ctx']['error']), 300)}", param, "invalid_value")
    return InvalidRequest(f"{param}: got {got}, expected {_expected(fault)}", param, "invalid_value")


def shown(value: object) -> str:
    """A value that the client sent, short enough for a message."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    if isinstance(value, float) and not isfinite(value):
        return "a number that is not finite"
    return _cut(json.dumps(value, ensure_ascii=False, default=str), 60)


def _expected(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "too_long":
            return f"at most {counted(context['max_length'], 'item')}"
        case "too_short":
            return f"at least {counted(context['min_length'], 'item')}"
        case "string_too_short":
            return "a string that is not empty"
        case "string_pattern_mismatch":
            return f"a string matching {context['pattern']}"
    return _cut(fault["msg"].removeprefix("Input should be "), 300)


def _param(location: tuple[int | str, ...]) -> str | None:
    """A name such as `messages.1.content.0.type`; None for the body itself."""
    parts = [str(part) for part in location if part not in ("<text>", "<list>", "<object>", "[key]")]
    return _cut(".".join(parts), 120) if parts else None


def _suggestion(unknown: str, known: Iterable[str]) -> str:
    near = get_close_matches(unknown, known, n=1)
    return f"did you mean {near[0]}?" if near else "nothing is ignored here, so leave it out"


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
