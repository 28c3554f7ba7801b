"""Whole replies of Messages as chat completions, and back: blocks, stop reasons and usage.

A provider's own reply stays beside its translation (under `NAME`), so that a client which speaks Messages
gets it as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from r2_serve.dialects.messages.thoughts import keys_of, signature_of, text_of
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.types import Answer, Json, Usage

NAME = "messages_api"
"""The key of a provider's own reply or event in its translation."""
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def completion_of(reply: Json) -> Json:
    """A provider's reply as a chat completion, with the reply itself."""
    if reply.get("type") == "error" or "error" in reply:
        return {"error": reply.get("error") or reply}
    content = reply.get("content")
    blocks = as_objects(content)
    message: Json = {"role": "assistant", "content": _text_of(blocks), "refusal": None, "annotations": []}
    message |= _thoughts_of(blocks)
    if calls := [call_of(block) for block in blocks if block.get("type") == "tool_use"]:
        message["tool_calls"] = calls
    reason = reply.get("stop_reason")
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reason)}
    usage = reply.get("usage")
    counts = usage_of(usage) if isinstance(usage, dict) else None
    is_message = isinstance(content, list) and isinstance(reason, str)
    return {"choices": [choice] if is_message else [], "usage": counts, NAME: reply}


def finish_reason(reason: object) -> object:
    """OpenAI's name of a stop reason; an unknown one as it is."""
    return FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else None


def call_of(block: Json) -> Json:
    """A `tool_use` block as a tool call."""
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _text_of(blocks: list[Json]) -> str | None:
    texts = [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]
    has_calls = any(block.get("type") == "tool_use" for block in blocks)
    return "".join(texts) if texts or not has_calls else None


def _thoughts_of(blocks: list[Json]) -> Json:
    """Thoughts as clients of chat completions know them: as text, and as blocks to be sent back."""
    thoughts = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    text = "".join(str(block.get("thinking") or "") for block in thoughts)
    return ({"reasoning_content": text} if text else {}) | ({"thinking_blocks": thoughts} if thoughts else {})


def usage_of(usage: Json) -> Json:
    """OpenAI's usage. Its prompt tokens include those read from the cache and written to it."""
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    thoughts = _count(as_object(usage.get("output_tokens_details")), "thinking_tokens")
    counts: Json = {
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": usage.get("cache_creation"),
    }
    if isinstance(given := usage.get("input_tokens"), int):
        counts["prompt_tokens"] = given + read + written
    if isinstance(given := usage.get("output_tokens"), int):
        counts["completion_tokens"] = given
    if {"prompt_tokens", "completion_tokens"} <= counts.keys():
        counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]  # type: ignore[operator]
    return counts


def _count(usage: Json, name: str) -> int:
    count = usage.get(name)
    return count if isinstance(count, int) else 0


# -- back: answers as messages --


def message_of(answer: Answer, id: str, model: str) -> Json:
    """The message of an answer. A provider's own comes as it is, under our id and the client's model name."""
    body = answer.body or {}
    native = native_of(body)
    if native is not None:
        usage = as_object(native.get("usage")) | counts_of(answer.usage)
        return {**native, "id": id, "model": model, "usage": usage}
    choice = next(iter(as_objects(body.get("choices"))), {})
    message = choice.get("message")
    said: Json = message if isinstance(message, dict) else {"content": answer.text}
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(_blocks_of(said)),
        **stop_of(said, answer.finish_reason, choice),
        "usage": counts_of(answer.usage),
    }


def native_of(body: Json) -> Json | None:
    """What a provider sent in this dialect, of a reply or a chunk; None if it spoke another one."""
    found = body.get(NAME)
    return found if isinstance(found, dict) else None


def stop_of(message: Json, finish_reason: str, choice: Json) -> Json:
    """`stop_reason` and `stop_sequence`. Of chat servers only vLLM names the sequence, in the choice."""
    sequence = choice.get("stop_reason")
    if finish_reason == "stop" and isinstance(sequence, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    reason = "refusal" if message.get("refusal") else _STOP_REASONS[finish_reason]
    return {"stop_reason": reason, "stop_sequence": None}


def _blocks_of(message: Json) -> Iterator[Json]:
    if keys := keys_of(message):
        yield {"type": "thinking", "thinking": text_of(keys), "signature": signature_of(keys)}
    for text in (message.get("content"), message.get("refusal")):
        if text:
            yield {"type": "text", "text": text}
    for call in as_objects(message.get("tool_calls")):
        function = as_object(call.get("function"))
        arguments = input_of(str(function.get("arguments") or ""))
        yield {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def input_of(arguments: str) -> Json:
    """The arguments of a call. Text that is no JSON object goes to the tool as `arguments`, which refuses it
    and lets the model try again."""
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {"arguments": arguments}


def counts_of(usage: Usage) -> Json:
    """The usage of all calls, where input tokens leave out those of the cache."""
    read, written = usage.cached_read_tokens, usage.cached_write_tokens
    return {
        "input_tokens": usage.prompt_tokens - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.completion_tokens,
    }
