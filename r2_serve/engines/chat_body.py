"""A call as a body of chat completions, for providers and for vLLM's own server code."""

from __future__ import annotations

from collections.abc import Sequence

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
        schema = {"name": "reply", "schema": sampling.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in body.items() if value is not None} | sampling.forwarded
