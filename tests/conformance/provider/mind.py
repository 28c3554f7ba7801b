"""What the scripted model replies. The newest message of the user tells it, so each client can ask for
everything.

    CALL weather {"city": "Oslo"}    calls the tool; several lines are calls at the same time
    FAIL 429 x2 #some-name           is refused two times with this status, then answered
    REPEAT                           replies with the conversation as the model saw it

A message with results of tools is answered with the results, an image with its size, and a request with a
schema with JSON that fits it.
"""

from __future__ import annotations

import hashlib
import json
import re

from tests.conformance.provider.conversation import (
    TEMPLATE_TOKENS,
    Answer,
    Asked,
    Call,
    Json,
    Refusal,
    Said,
    Usage,
)
from tests.conformance.provider.memory import Memory

ANSWER = "The whole answer of six words."
THOUGHT = "The user wants an answer, so I weigh it."
_CALL = re.compile(r"^\s*CALL (\S+) (.+)$", re.MULTILINE)
_FAIL = re.compile(r"FAIL (\d{3}) x(\d+) #([\w-]+)")


def think(asked: Asked, memory: Memory) -> Answer | Refusal:
    """The reply to a request."""
    newest = "\n".join(each.text for each in asked.newest if each.role == "user")
    if failure := _failure(newest, memory) or _broken_reasoning(asked) or _broken_calls(asked):
        return failure
    results = [each.text for each in asked.newest if each.role == "tool"]
    text, calls = "", ()
    if results:
        text = f"The tools say: {'; '.join(results)}"
    elif wanted := [call for call in _CALL.findall(newest) if asked.tools]:
        calls = _calls(wanted, asked, memory)
        text = "" if calls else f"I have no tool {wanted[0][0]}, only {', '.join(asked.tools)}"
    elif asked.forced_tool:
        arguments = json.dumps(filled(asked.tools[asked.forced_tool]))
        calls = (Call(_new_id(memory), asked.forced_tool, arguments),)
    else:
        text = _text(newest, asked)
    return _answer(asked, memory, text, calls)


def _text(newest: str, asked: Asked) -> str:
    if asked.schema is not None:
        return json.dumps(filled(asked.schema))
    if "REPEAT" in newest:
        return "\n".join(f"{each.role}: {each.text}" for each in asked.said)
    images = [image for each in asked.newest for image in each.images]
    return f"I see {' and '.join(images)}" if images else ANSWER


def _answer(asked: Asked, memory: Memory, text: str, calls: tuple[Call, ...]) -> Answer:
    thought = THOUGHT if asked.is_thinking else ""
    read, written = memory.cached(asked)
    reasoning = len(thought) // 4
    reply = Said("assistant", text, calls=calls).tokens + reasoning
    tools = len(json.dumps(asked.tools)) // 4 + TEMPLATE_TOKENS * len(asked.tools)
    prompt = sum(each.tokens for each in asked.said) + tools
    usage = Usage(prompt, read, written, reply, reasoning)
    return Answer(next(memory.numbers), usage, text, calls, thought, signature_of(thought) if thought else "")


def _calls(wanted: list[tuple[str, str]], asked: Asked, memory: Memory) -> tuple[Call, ...]:
    offered = [(name, text) for name, text in wanted if name in asked.tools]
    return tuple(Call(_new_id(memory), name, text, asked.tools[name] is None) for name, text in offered)


def _new_id(memory: Memory) -> str:
    return f"call_{next(memory.numbers):06}"


def _failure(newest: str, memory: Memory) -> Refusal | None:
    found = _FAIL.search(newest)
    if found is None:
        return None
    memory.tries[found[3]] += 1
    number = memory.tries[found[3]]
    if number > int(found[2]):
        return None
    return Refusal(int(found[1]), f"refused at try {number}", 0 if found[1] == "429" else None)


def signature_of(thought: str) -> str:
    """What stands for the provider's own signature or its encrypted reasoning."""
    return hashlib.sha256(thought.encode()).hexdigest()


def _broken_reasoning(asked: Asked) -> Refusal | None:
    """Anthropic wants the reasoning before calls of tools back if thinking is `enabled`; no provider takes
    reasoning that was changed."""
    for each in asked.said:
        if each.signature is not None and each.signature != signature_of(each.thought or THOUGHT):
            return Refusal(400, "the signature of the reasoning is not ours")
    last = [each for each in asked.said if each.role == "assistant"][-1:]
    is_looping = any(each.role == "tool" for each in asked.newest)
    if asked.wants_thoughts_back and is_looping and last[0].signature is None:
        return Refusal(400, "Expected `thinking` or `redacted_thinking`, but found `tool_use`")
    return None


def _broken_calls(asked: Asked) -> Refusal | None:
    """Each call has one result, which follows it, and each result has its call."""
    open_calls: set[str] = set()
    for each in asked.said:
        if each.role == "tool":
            if each.answers not in open_calls:
                return Refusal(400, f"a result has no call before it: {each.answers}, open: {open_calls}")
            open_calls.remove(each.answers)
        elif each.role != "system":
            if open_calls:
                return Refusal(400, f"calls have no result: {open_calls}")
            open_calls = {call.id for call in each.calls}
    return Refusal(400, f"calls have no result: {open_calls}") if open_calls else None


def filled(schema: Json, root: Json | None = None) -> object:
    """A value that fits a JSON schema."""
    root = root or schema
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return filled(schema["anyOf"][0], root)
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: filled(part, root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {"type": "string"}), root)] * schema.get("minItems", 1)
    return {"string": "Oslo", "integer": 4, "number": 4.5, "boolean": True, "null": None}[kind]
