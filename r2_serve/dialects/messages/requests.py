"""Requests of Messages, read into chat completions.

Source: https://docs.anthropic.com/en/api/messages. The client's own parameters and blocks stay beside the
chat request (`ReadRequest`), for an engine that speaks Messages. What no chat completion can say is a demand:
only such an engine is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r2_serve.dialects.messages.history import ChatHistory
from r2_serve.dialects.messages.parts import held
from r2_serve.dialects.wire import read_object
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json, Query

VERSION = "2023-06-01"
"""The version of the API that is sent if the client names none. Its successor, 2026-10-21, has the same
shapes and refuses `temperature`, `top_p` and `top_k`, which some models take."""
HEADERS = "anthropic_headers"
"""Key of the client's own headers in `Sampling.messages_api`."""
_OLD_VERSION = "2023-01-01"
VERSION_HEADER = "anthropic-version"
_KEPT_HEADERS = (VERSION_HEADER, "anthropic-beta")
_SENT_AS_CHAT = frozenset({"model", "messages", "system", "max_tokens", "stream", "temperature", "top_p"})
_TRANSLATED = frozenset({"stop_sequences", "tools", "tool_choice", "top_k", "output_config"})
_HINTS = frozenset(
    {"metadata", "thinking", "cache_control", "service_tier", "diagnostics", "user_profile_id"}
)
"""Parameters that identify the caller, or that leave every answer right where they are not read."""
_TOOL_KEYS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_TOOL_HINTS = frozenset({"eager_input_streaming", "input_examples", "defer_loading"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_PARAMS = {"stop": "stop_sequences", "response_format": "output_config.format", "model": "model"}
_PARAMS |= {"reasoning_effort": "output_config.effort", "parallel_tool_calls": "tool_choice"}
"""The client's name of each chat parameter that has another one."""


@dataclass(frozen=True)
class ReadRequest:
    """A request in the shape of chat completions, and what this shape leaves out."""

    chat: Json
    native: Json
    """The client's parameters as they came, without those that every dialect has."""
    history: ChatHistory
    demands: tuple[str, ...] = ()
    """Chat names of what only Messages can say."""

    def refined(self, query: Query) -> Query:
        """`query`, with what the chat request cannot say."""
        messages = tuple(
            message.model_copy(update={"blocks": self.history.blocks[at]})
            if at in self.history.blocks
            else message
            for at, message in enumerate(query.messages)
        )
        sampling = query.sampling.model_copy(
            update={"messages_api": self.native, "only_messages_api": self.demands}
        )
        return query.model_copy(update={"messages": messages, "sampling": sampling})

    def param(self, name: str) -> str:
        """The client's name of a chat field."""
        if not name.startswith("messages."):
            return _PARAMS.get(name, name)
        index = name.split(".")[1]
        is_known = index.isdecimal() and int(index) < len(self.history.places)
        return self.history.places[int(index)] if is_known else name


def check_version(headers: Mapping[str, str]) -> None:
    """Raises: InvalidRequest for the version of the API whose streams differ."""
    if headers.get(VERSION_HEADER) == _OLD_VERSION:
        message = f"anthropic-version: got {_OLD_VERSION}, this server speaks {VERSION} and later ones"
        raise InvalidRequest(message, VERSION_HEADER, "invalid_value")


def read_request(body: bytes, headers: Mapping[str, str], *, is_count: bool = False) -> ReadRequest:
    """`is_count` is for a request that asks for its number of tokens alone.

    Raises: InvalidRequest naming the field at fault.
    """
    check_version(headers)
    whole = read_object(body, "model, max_tokens and messages")
    given = {name: value for name, value in whole.items() if value is not None}
    reading = _Reading(given)
    reading.history.read(given.get("system"), given.get("messages"))
    reading.limits(is_count=is_count)
    reading.tools()
    reading.output()
    reading.others()
    native = {name: value for name, value in given.items() if name not in (_SENT_AS_CHAT | {"r2"})}
    if given.get("max_tokens") == 0:
        native["max_tokens"] = 0
    native[HEADERS] = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    demands = tuple(dict.fromkeys([*reading.demands, *reading.history.demands]))
    return ReadRequest(reading.chat, native, reading.history, demands)


@dataclass
class _Reading:
    """One request while it is read."""

    given: Json
    chat: Json = field(default_factory=dict)
    demands: list[str] = field(default_factory=list)
    history: ChatHistory = field(default_factory=ChatHistory)

    def limits(self, *, is_count: bool) -> None:
        given = self.given
        self.chat |= {"model": held(given.get("model"), str, "model"), "messages": self.history.messages}
        names = ("stream", "temperature", "top_p", "top_k", "r2")
        self.chat |= {name: given[name] for name in names if given.get(name) is not None}
        limit = given.get("max_tokens")
        if limit == 0:
            self.demands.append("max_tokens")
        elif limit is not None or not is_count:
            self.chat["max_tokens"] = held(limit, int, "max_tokens")
        if given.get("stop_sequences") is not None:
            self.chat["stop"] = held(given["stop_sequences"], list, "stop_sequences")

    def tools(self) -> None:
        tools = held(self.given.get("tools", []), list, "tools")
        read = [self._tool(held(tool, dict, f"tools.{at}"), f"tools.{at}") for at, tool in enumerate(tools)]
        if functions := [tool for tool in read if tool is not None]:
            self.chat["tools"] = functions
        choice = self.given.get("tool_choice")
        if choice is not None:
            self._choice(held(choice, dict, "tool_choice"))

    def _tool(self, tool: Json, place: str) -> Json | None:
        if tool.get("type", "custom") not in ("custom", None):
            self.demands.append(place)
            return None
        held(tool.get("name"), str, f"{place}.name")
        schema = held(tool.get("input_schema"), dict, f"{place}.input_schema")
        callers = tool.get("allowed_callers")
        unsaid = [key for key, value in tool.items() if value is not None and key not in _TOOL_KEYS]
        if set(unsaid) - _TOOL_HINTS - ({"allowed_callers"} if callers == ["direct"] else set()):
            self.demands.append(place)
        function = {"name": tool["name"], "description": tool.get("description"), "parameters": schema}
        function |= {"strict": tool.get("strict")}
        said = {key: value for key, value in function.items() if value is not None}
        return {"type": "function", "function": said}

    def _choice(self, choice: Json) -> None:
        kind = choice.get("type")
        if kind == "tool":
            name = held(choice.get("name"), str, "tool_choice.name")
            self.chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        elif isinstance(kind, str) and kind in _CHOICES:
            self.chat["tool_choice"] = _CHOICES[kind]
        else:
            message = f"tool_choice.type: got {str(kind)[:40]!r}, expected auto, any, tool or none"
            raise InvalidRequest(message, "tool_choice.type", "invalid_value")
        if choice.get("disable_parallel_tool_use"):
            self.chat["parallel_tool_calls"] = False

    def output(self) -> None:
        wanted = held(self.given.get("output_config", {}), dict, "output_config")
        if (effort := wanted.get("effort")) is not None:
            self.chat["reasoning_effort"] = "xhigh" if effort == "max" else effort
        if (form := wanted.get("format")) is not None:
            held(form, dict, "output_config.format")
            schema = held(form.get("schema"), dict, "output_config.format.schema")
            named = {"name": "output", "schema": schema, "strict": True}
            self.chat["response_format"] = {"type": "json_schema", "json_schema": named}
        self.demands += [f"output_config.{key}" for key in wanted if key not in ("effort", "format")]

    def others(self) -> None:
        """Everything that Anthropic adds to its API is a demand until it is known to be none."""
        known = _SENT_AS_CHAT | _TRANSLATED | _HINTS | {"r2"}
        for name, value in self.given.items():
            if name not in known and value not in (None, [], {}) and not _says_nothing(name, value):
                self.demands.append(name)


def _says_nothing(name: str, value: object) -> bool:
    """Whether a parameter asks for what happens without it."""
    if name == "context_management" and isinstance(value, dict):
        edits: Sequence[object] = value["edits"] if isinstance(value.get("edits"), list) else ()
        kinds = [str(edit.get("type")) for edit in edits if isinstance(edit, dict)]
        return all(kind.startswith("clear_thinking") for kind in kinds)
    return name == "speed" and value == "standard"
