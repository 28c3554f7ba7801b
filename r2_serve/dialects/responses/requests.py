"""Requests of the Responses API: a body as a body of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from r2_serve.dialects.responses.history import message_items
from r2_serve.dialects.responses.items import Conversation
from r2_serve.dialects.responses.names import ToolNames, chat_choice, check_left_out
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json, Query

AS_IN_CHAT = {
    "max_output_tokens": "max_completion_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stream": "stream",
    "user": "user",
    "safety_identifier": "safety_identifier",
    "service_tier": "service_tier",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_retention": "prompt_cache_retention",
}
"""Parameters that chat completions have too, with their name there."""
NOT_HERE = {
    "background_options": "ask without background",
    "conversation": "send previous_response_id, or the whole conversation in input",
    "moderation": "moderate before or after R2",
}
"""Parameters that the router would have to keep to itself, with what to do instead."""
NATIVE_ONLY = frozenset(
    {"access_programs", "context_management", "image", "max_tool_calls", "prompt", "prompt_cache_options"}
)
"""Parameters that only a provider of the Responses API knows."""
WITHOUT_EFFECT = frozenset({"client_metadata", "metadata", "stream_options", "store", "include"})
"""Parameters that identify a call or say what else a reply holds, and cannot change the answer."""
_READ = frozenset(
    {"background", "model", "input", "instructions", "previous_response_id", "r2", "text", "reasoning"}
)
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "truncation"})
KNOWN = frozenset({*AS_IN_CHAT, *NOT_HERE, *NATIVE_ONLY, *WITHOUT_EFFECT, *_READ, *_TOOLS})
PARAMS = {
    **{chat: name for name, chat in AS_IN_CHAT.items()},
    "messages": "input",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""The client's name of each parameter of chat completions that is called otherwise."""
_OURS = frozenset({"background", "model", "input", "instructions", "previous_response_id", "stream", "r2"})
"""Parameters that the router writes itself in a request to a provider of the Responses API."""


@dataclass(frozen=True)
class Translated:
    """A request in the shape of chat completions, and what this shape cannot say."""

    chat: Json
    names: ToolNames
    items: tuple[tuple[Json, ...] | None, ...]
    """Items as they came, by message; None for a message that says all of them."""
    native: Json
    """The parameters as they came, for a provider that speaks the Responses API itself."""

    def refined(self, query: Query) -> Query:
        """The query that was read from `chat`, with what only a provider of the Responses API reads."""
        pairs = zip(query.messages, self.items, strict=True)
        messages = tuple(message.model_copy(update={"items": items}) for message, items in pairs)
        sampling = query.sampling.model_copy(update={"responses": self.native})
        return query.model_copy(update={"messages": messages, "sampling": sampling})


def input_items(value: object) -> tuple[Json, ...]:
    """`input` as items. Raises: InvalidRequest."""
    if isinstance(value, str):
        return ({"type": "message", "role": "user", "content": value},)
    if not isinstance(value, list):
        raise InvalidRequest("input must be a string or a list of items", "input", "invalid_type")
    return tuple(value)


def translated(body: Json, items: Sequence[Json], *, is_native: bool) -> Translated:
    """The request `body` over the whole conversation `items`, those of earlier responses included.

    `is_native` says that the model's provider speaks the Responses API, so that it reads what chat
    completions cannot say. Raises: InvalidRequest naming the field that cannot be said or is not known.
    """
    _check_known(body, is_native=is_native)
    names = ToolNames.of(_tools(body))
    messages = Conversation(names, is_native).read(items)
    if instructions := body.get("instructions"):
        if not isinstance(instructions, str):
            raise InvalidRequest("instructions must be a string", "instructions", "invalid_type")
        messages.insert(0, {"role": "system", "content": instructions, "r2": {}})
    if not is_native:
        check_left_out(names, body.get("tool_choice"))
    chat: Json = {
        "model": body.get("model"),
        "messages": [{key: value for key, value in message.items() if key != "r2"} for message in messages],
        **{name: body[key] for key, name in AS_IN_CHAT.items() if body.get(key) is not None},
        **_text(body),
        **_reasoning(body, names),
        **_logprobs(body),
        **_tool_parameters(body, names, is_native=is_native),
        "r2": body.get("r2"),
    }
    chat = {key: value for key, value in chat.items() if value is not None}
    if is_native:
        names.left_out.clear()  # the provider gets them all, as they came
    own = tuple(_items_to_keep(message) for message in messages)
    return Translated(chat, names, own, _native(body, is_native=is_native))


def _check_known(body: Json, *, is_native: bool) -> None:
    for name in body:
        if body[name] in (None, False) or (is_native and name not in NOT_HERE):
            continue
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else "nothing is ignored here, so leave it out"
            raise InvalidRequest(f"unknown parameter {name[:60]}; {hint}", name[:60], "unknown_parameter")
        if name in NOT_HERE:
            raise _unsupported(name, f"is not supported: {NOT_HERE[name]}")
        if name in NATIVE_ONLY:
            raise _unsupported(name, "is known to models whose engine is of kind openai-responses alone")
    if not is_native and body.get("truncation") not in (None, "disabled"):
        raise _unsupported("truncation", "must be disabled: nothing is cut from a conversation here")


def _unsupported(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {message}", name, "unsupported_parameter")


def _tools(body: Json) -> list[Json]:
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest("tools must be a list of objects", "tools", "invalid_type")
    return tools


def _section(body: Json, name: str) -> Json:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object", name, "invalid_type")
    return value


def _text(body: Json) -> Json:
    text = _section(body, "text")
    form, verbosity = text.get("format"), text.get("verbosity")
    found: Json = {} if verbosity is None else {"verbosity": verbosity}
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {key: value for key, value in form.items() if key != "type" and value is not None}
        return {**found, "response_format": {"type": "json_schema", "json_schema": schema}}
    if form is None or (isinstance(form, dict) and form.get("type") == "text"):
        return found
    return {**found, "response_format": form}


def _reasoning(body: Json, names: ToolNames) -> Json:
    reasoning = _section(body, "reasoning")
    known = ("effort", "summary")
    names.left_out += [f"reasoning.{key}" for key in reasoning if key not in known and reasoning[key]]
    return {"reasoning_effort": reasoning.get("effort")}


def _logprobs(body: Json) -> Json:
    include, top = body.get("include") or [], body.get("top_logprobs")
    wanted = isinstance(include, list) and "message.output_text.logprobs" in include
    return {"logprobs": True if wanted or top else None, "top_logprobs": top or None}


def _tool_parameters(body: Json, names: ToolNames, *, is_native: bool) -> Json:
    """The tools that chat completions can say; what a choice among no tools says is left out."""
    if not names.tools:
        return {}
    choice = None if is_native else chat_choice(body.get("tool_choice"), names)
    return {
        "tools": names.tools,
        "tool_choice": choice,
        "parallel_tool_calls": body.get("parallel_tool_calls"),
    }


def _native(body: Json, *, is_native: bool) -> Json:
    """The parameters as they came, for a provider that speaks the Responses API itself."""
    native = {key: value for key, value in body.items() if key not in _OURS and value is not None}
    if not is_native and "tools" in native:
        kinds = ("function", "custom", "namespace", "tool_search")
        native["tools"] = [tool for tool in _tools(body) if tool.get("type") in kinds]
    return native


def _items_to_keep(message: Json) -> tuple[Json, ...] | None:
    """The items of a message as they came; None if the translation back says the same."""
    items = as_objects(as_object(message["r2"]).get("items"))
    if not items:
        return None
    try:
        is_same = message_items({**message, "r2": None}, "") == items
    except InvalidRequest:
        is_same = False
    return None if is_same else tuple(items)
