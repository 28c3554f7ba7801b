"""A call as a body of chat completions, for providers and for vLLM's own server code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from r2_serve.types import EngineCall, Json, Message


def chat_body(
    call: EngineCall,
    model: str,
    *,
    messages: Sequence[Message] | None = None,
    is_streamed: bool = False,
    max_tokens_field: str = "max_tokens",
) -> Json:
    """The body; `messages` replace those of the call. A stream reports its usage in its last chunk."""
    sampling = call.sampling
    body: Json = {
        "model": model,
        "messages": [message.wire for message in (call.messages if messages is None else messages)],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.logprobs or None,
        max_tokens_field: sampling.max_tokens,
    }
    if sampling.response_format is not None:
        body["response_format"] = sampling.response_format
    elif sampling.json_schema is not None:
        schema = {"name": "reply", "schema": _by_kind(sampling.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in body.items() if value is not None} | sampling.forwarded


def _by_kind(schema: Json) -> Json:
    """The schema with one kind of items in each array, as providers refuse `prefixItems` (items by place)."""
    changed: Json = {
        name: _by_kind(part) if isinstance(part, dict) else part for name, part in schema.items()
    }
    places = changed.pop("prefixItems", None)
    if isinstance(places, list):
        changed |= {"items": reduce(_either, places), "maxItems": len(places)}
    return changed


def _either(one: Json, other: Json) -> Json:
    """A schema that admits what one of two similar schemas admits."""
    return {name: _joined(one[name], other[name]) for name in one if name in other}


def _joined(one: object, other: object) -> object:
    if isinstance(one, dict) and isinstance(other, dict):
        return _either(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *(item for item in other if item not in one)]
    return one
