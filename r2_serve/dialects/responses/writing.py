"""Bodies of chat completions, written as requests of the Responses API for a provider that speaks it.

A client of this API gets its own items and parameters through as they came. Nothing is kept at the provider
unless the client asks for it (`store: true`): so thoughts must come back sealed, and are sent along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2_serve.dialects.responses.history import items_of
from r2_serve.dialects.responses.parts import cannot_say
from r2_serve.dialects.responses.requests import AS_IN_CHAT
from r2_serve.dialects.responses.thoughts import is_foreign
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.types import Json, Message, Sampling
from r2_serve.types.abilities import states_the_default

SEALED_THOUGHTS = "reasoning.encrypted_content"
_NO_SEAL = re.compile(r"encrypted.{0,20} (is|are) not supported|include", re.IGNORECASE)
_LIMITS = ("max_tokens", "max_completion_tokens")
_RENAMED = frozenset({*_LIMITS, "messages", "response_format", "verbosity", "reasoning_effort", "logprobs"})
_TOOLS = frozenset({"tools", "tool_choice", "stream_options"})
_UNSAID = frozenset({"audio", "frequency_penalty", "function_call", "functions", "logit_bias", "modalities"})
_UNSAID |= {"n", "prediction", "presence_penalty", "seed", "stop", "web_search_options"}
"""Parameters of chat completions that the API does not have."""


def write_request(chat: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """`messages` are those of `chat`, with their own items; `sampling` has the client's own parameters.

    Parameters that chat completions do not have pass as they came.

    Raises: InvalidRequest for what the API cannot say.
    """
    _check(chat)
    own = sampling.responses
    names = {chat_name: name for name, chat_name in AS_IN_CHAT.items()}
    names |= dict.fromkeys(_LIMITS, "max_output_tokens")
    said = {names[name]: value for name, value in chat.items() if name in names}
    body: Json = {"model": chat["model"], "input": _readable(items_of(messages)), "store": False}
    if own is not None:
        return {**_with_sealed_thoughts(own), **body, "store": own.get("store") is True, **said}
    rest = {name: value for name, value in chat.items() if name not in _RENAMED | _TOOLS | _UNSAID}
    return _with_sealed_thoughts({**rest, **body, **said, **_text(chat), **_reasoning(chat), **_tools(chat)})


class RequestWriter:
    """Writes the requests to one provider, and remembers what it refuses."""

    def __init__(self) -> None:
        self._seals_thoughts = True
        """Whether the model may seal its thoughts; those that do not think refuse to be asked for it."""

    def __call__(self, chat: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
        body = write_request(chat, messages, sampling)
        return body if self._seals_thoughts else _without_sealed_thoughts(body)

    def relents(self, sent: Json, refusal: str) -> bool:
        """Whether the next request will leave out what was refused of the one `sent`."""
        was_asked = isinstance(asked := sent.get("include"), list) and SEALED_THOUGHTS in asked
        if not was_asked or not _NO_SEAL.search(refusal):
            return False
        self._seals_thoughts = False
        return True


def _without_sealed_thoughts(body: Json) -> Json:
    include = body.get("include")
    kept = [name for name in include if name != SEALED_THOUGHTS] if isinstance(include, list) else []
    return {**{key: body[key] for key in body if key != "include"}, **({"include": kept} if kept else {})}


def _check(chat: Json) -> None:
    for name in sorted(_UNSAID.intersection(chat)):
        if not states_the_default(name, chat[name]):
            raise cannot_say(name, f"parameter {name!r}")


def _readable(items: Sequence[Json]) -> list[Json]:
    """The items without the thoughts that the provider cannot read: those of others, and those not sealed."""
    return [item for item in items if item.get("type") != "reasoning" or _is_sealed(item)]


def _is_sealed(item: Json) -> bool:
    return bool(item.get("encrypted_content")) and not is_foreign(item)


def _with_sealed_thoughts(body: Json) -> Json:
    include = body.get("include")
    known = list(include) if isinstance(include, list) else []
    return {**body, "include": [*known, *([] if SEALED_THOUGHTS in known else [SEALED_THOUGHTS])]}


def _text(chat: Json) -> Json:
    form, verbosity = as_object(chat.get("response_format")), chat.get("verbosity")
    text: Json = {} if verbosity is None else {"verbosity": verbosity}
    if form:
        text["format"] = {"type": form.get("type"), **as_object(form.get("json_schema"))}
    return {"text": text} if text else {}


def _reasoning(chat: Json) -> Json:
    effort, wants_logprobs = chat.get("reasoning_effort"), chat.get("logprobs")
    said: Json = {} if effort is None else {"reasoning": {"effort": effort}}
    return said | ({"include": ["message.output_text.logprobs"]} if wants_logprobs else {})


def _tools(chat: Json) -> Json:
    said: Json = {}
    if tools := as_objects(chat.get("tools")):
        said["tools"] = [_tool(tool) for tool in tools]
    if (choice := chat.get("tool_choice")) is not None:
        said["tool_choice"] = _choice(choice)
    return said


def _tool(tool: Json) -> Json:
    """A tool without the object around its fields; one that the provider runs passes as it came.

    Chat completions check the arguments of a function if asked, the Responses API unless asked not to.
    """
    kind = tool.get("type")
    held = as_object(tool.get(str(kind)))
    if kind == "function":
        return {"type": kind, "parameters": None, **held, "strict": bool(held.get("strict"))}
    if kind == "custom" and held:
        form = as_object(held.get("format"))
        grammar: Json = {"type": "grammar", **as_object(form.get("grammar"))}
        return {"type": kind, **held, **({"format": grammar} if form.get("type") == "grammar" else {})}
    return tool


def _choice(choice: object) -> object:
    if not isinstance(choice, dict):
        return choice
    kind = str(choice.get("type"))
    held = as_object(choice.get(kind))
    if kind == "allowed_tools":
        tools = [_choice(tool) for tool in as_objects(held.get("tools"))]
        return {"type": kind, "mode": held.get("mode"), "tools": tools}
    return {"type": kind, **held} if held else choice
