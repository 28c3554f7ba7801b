"""Bodies of chat completions, written as requests of Messages for a provider that speaks them."""

from __future__ import annotations

from collections.abc import Sequence

from r2_serve.dialects.messages.history import turns_of
from r2_serve.dialects.messages.parts import cannot_say, held
from r2_serve.dialects.messages.requests import HEADERS
from r2_serve.dialects.shapes import as_objects
from r2_serve.types import Json, Message, Sampling
from r2_serve.types.abilities import states_the_default

REPLY_TOKENS = 32_000
"""The limit that is sent where none is asked, as the API needs one. Every model since Claude 4 takes it."""
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_AS_THEY_ARE = ("model", "stream", "temperature", "top_p")
_TRANSLATED = frozenset({*_AS_THEY_ARE, "messages", "stop", "tools", "tool_choice", "parallel_tool_calls"})
_TRANSLATED |= {
    "max_tokens",
    "max_completion_tokens",
    "response_format",
    "reasoning_effort",
    "user",
    "safety_identifier",
}
_WITHOUT_EFFECT = frozenset({"stream_options", "metadata", "prompt_cache_key", "prompt_cache_retention"})
_WITHOUT_EFFECT |= {"prompt_cache_options", "store"}
_REFUSED = frozenset({"audio", "frequency_penalty", "function_call", "functions", "logit_bias", "modalities"})
_REFUSED |= {"moderation", "n", "prediction", "presence_penalty", "seed", "top_logprobs", "verbosity"}
_REFUSED |= {"web_search_options", "service_tier", "logprobs"}


def write_request(chat: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """`messages` are those of `chat`, with their own blocks; `sampling` has the client's own parameters.

    Parameters that chat completions do not have pass as they came, as clients name Anthropic's so.

    Raises: InvalidRequest for what Messages cannot say.
    """
    own = {name: value for name, value in (sampling.messages_api or {}).items() if name != HEADERS}
    _check(chat, sampling)
    system, turns = turns_of(messages)
    body: Json = {name: chat[name] for name in _AS_THEY_ARE if name in chat}
    limit = chat.get("max_tokens") or chat.get("max_completion_tokens") or REPLY_TOKENS
    body["max_tokens"] = own.pop("max_tokens", limit)
    body |= {"messages": turns} | ({"system": system} if system else {})
    if chat.get("stop"):
        body["stop_sequences"] = chat["stop"]
    body |= _tools(chat) | _output(chat) | _caller(chat)
    if sampling.messages_api is None:  # else the client speaks Messages and decides itself
        body |= _cache(chat, body)
    ours = _TRANSLATED | _WITHOUT_EFFECT | _REFUSED
    return body | {name: value for name, value in chat.items() if name not in ours} | own


_COUNTED = frozenset({"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"})
_COUNTED |= {"cache_control", "context_management", "mcp_servers", "speed"}


def count_request(body: Json) -> Json:
    """The request that asks for the number of tokens of another one."""
    return {name: value for name, value in body.items() if name in _COUNTED}


def _check(chat: Json, sampling: Sampling) -> None:
    """Raises: InvalidRequest for a parameter that Messages does not have."""
    for name in sorted(_REFUSED.intersection(chat)):
        is_own_wish = name == "logprobs" and name not in sampling.forwarded
        if not states_the_default(name, chat[name]) and not is_own_wish:
            raise cannot_say(name, name)
    if (temperature := sampling.temperature) is not None and temperature > 1:
        raise cannot_say("temperature", f"a temperature of {temperature:g}: it takes 0 to 1")


def _tools(chat: Json) -> Json:
    said: Json = {}
    if tools := chat.get("tools"):
        given = enumerate(held(tools, list, "tools"))
        said["tools"] = [_tool(held(tool, dict, f"tools.{at}"), f"tools.{at}") for at, tool in given]
    choice, is_parallel = chat.get("tool_choice"), chat.get("parallel_tool_calls")
    if choice is not None:
        said["tool_choice"] = _choice(choice)
    if is_parallel is False and tools and choice != "none":
        said["tool_choice"] = {**_choice(choice or "auto"), "disable_parallel_tool_use": True}
    return said


def _tool(tool: Json, place: str) -> Json:
    """A function as a tool of the client; a tool of Anthropic's passes as it came."""
    kind = tool.get("type")
    if kind == "custom" and "custom" in tool:
        raise cannot_say(f"{place}.type", "a tool with free text as its input")
    if kind != "function":
        return tool
    function = held(tool.get("function"), dict, f"{place}.function")
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    said = {"name": function.get("name"), "description": function.get("description")}
    said |= {"strict": function.get("strict"), "cache_control": tool.get("cache_control")}
    return {**{key: value for key, value in said.items() if value is not None}, "input_schema": schema}


def _choice(choice: object) -> Json:
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = held(choice.get("function"), dict, "tool_choice.function")
        return {"type": "tool", "name": function.get("name")}
    raise cannot_say("tool_choice", f"the choice {str(choice)[:80]}")


def _output(chat: Json) -> Json:
    config: Json = {}
    effort, wanted = chat.get("reasoning_effort"), chat.get("response_format")
    if effort not in (None, "none"):
        config["effort"] = "low" if effort == "minimal" else effort
    if isinstance(wanted, dict):
        if wanted.get("type") != "json_schema":
            raise cannot_say("response_format", f"the format {wanted.get('type')}")
        named = held(wanted.get("json_schema"), dict, "response_format.json_schema")
        config["format"] = {"type": "json_schema", "schema": named.get("schema")}
    said: Json = {"output_config": config} if config else {}
    return said | ({"thinking": {"type": "disabled"}} if effort == "none" else {})


def _cache(chat: Json, body: Json) -> Json:
    """A mark at the end of a prompt that will be sent again, as chat completions cache without any mark.

    Writing to the cache costs a quarter more than reading the prompt and the cache costs a tenth, so the mark
    pays off at the second turn. A client that marks its prompt itself is left alone.
    """
    turns = [turn for turn in as_objects(body["messages"]) if turn.get("role") == "assistant"]
    is_sent_again = bool(turns or chat.get("tools") or chat.get("prompt_cache_key"))
    blocks = [block for turn in as_objects(body["messages"]) for block in as_objects(turn.get("content"))]
    blocks += [*as_objects(body.get("system")), *as_objects(body.get("tools"))]
    is_marked = any("cache_control" in block for block in blocks)
    return {"cache_control": {"type": "ephemeral"}} if is_sent_again and not is_marked else {}


def _caller(chat: Json) -> Json:
    caller = chat.get("safety_identifier") or chat.get("user")
    return {"metadata": {"user_id": caller}} if caller else {}
