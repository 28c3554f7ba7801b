"""Conversations of Messages as those of chat completions, and back.

A turn of the user with tool results becomes one chat message for each result, and one for the rest. Thoughts
with a signature are their provider's own: they go back to it in `Message.blocks` and to no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from r2_serve.dialects.messages.parts import blocks_of, cannot_say, held, part_of, unsaid
from r2_serve.dialects.messages.thoughts import thoughts_in
from r2_serve.dialects.sealing import join_thoughts, unsealed
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json, Message

_MARKS = frozenset({"annotations", "cache_control", "reasoning", "reasoning_content", "reasoning_details"})
_MARKS |= {"provider_specific_fields"}
"""Keys of a chat message that Messages need not say: remarks on an earlier reply, and thoughts of others.
LiteLLM repeats fields of the reply in `provider_specific_fields`."""
_SAID = frozenset({"role", "content", "tool_calls", "tool_call_id", "thinking_blocks", "refusal"})
Block = Json


@dataclass
class ChatHistory:
    """The chat messages of a request, as they are read."""

    messages: list[Json] = field(default_factory=list)
    blocks: dict[int, tuple[Block, ...]] = field(default_factory=dict)
    """The blocks of each message, by its index, that the chat message does not say in full."""
    places: list[str] = field(default_factory=list)
    """The client's name of each message, such as `messages.0`."""
    demands: list[str] = field(default_factory=list)
    """Chat names of the messages which hold something that only Messages can say."""

    def read(self, system: object, messages: object) -> None:
        """Raises: InvalidRequest naming the field at fault."""
        if system is not None:
            self._plain("system", _blocks(system, "system"), "system")
        for index, message in enumerate(held(messages, list, "messages")):
            place = f"messages.{index}"
            role = held(held(message, dict, place).get("role"), str, f"{place}.role")
            blocks = _blocks(message.get("content"), f"{place}.content")
            if role not in ("user", "assistant", "system"):
                got = f"{place}.role: got {role[:40]!r}, expected user, assistant or system"
                raise InvalidRequest(got, f"{place}.role", "invalid_value")
            self._user(blocks, place) if role == "user" else self._plain(role, blocks, place)
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.demands.append(f"messages.{len(self.messages) - 1}")

    def _user(self, blocks: Sequence[Block], place: str) -> None:
        others: list[Block] = []
        for index, block in enumerate(blocks):
            if block["type"] == "tool_result":
                self._plain("user", others, place) if others else None
                others = []
                self._tool_result(block, f"{place}.content.{index}")
            else:
                others.append(block)
        if others or not blocks:
            self._plain("user", others, place)

    def _tool_result(self, block: Block, place: str) -> None:
        given = block.get("content")
        inner = [] if given is None else _blocks(given, f"{place}.content")
        id = held(block.get("tool_use_id"), str, f"{place}.tool_use_id")
        message: Json = {"role": "tool", "tool_call_id": id, "content": _content(inner)}
        self._add(message, [block], [block, *inner], place)

    def _plain(self, role: str, blocks: Sequence[Block], place: str) -> None:
        message: Json = {"role": role, "content": _content(blocks)}
        if role == "assistant":
            message |= _thoughts(blocks) | _calls(blocks, place)
            message["content"] = message["content"] or (None if "tool_calls" in message else "")
        self._add(message, blocks, blocks, place)

    def _add(self, message: Json, blocks: Sequence[Block], all_blocks: Sequence[Block], place: str) -> None:
        at = len(self.messages)
        self.messages.append(message)
        self.places.append(place)
        if any(unsaid(block) for block in all_blocks):
            self.demands.append(f"messages.{at}")
        if _said(message, at) != list(blocks):
            self.blocks[at] = tuple(blocks)


def _said(message: Json, at: int) -> list[Block] | None:
    """The blocks that the chat message alone would become; None if it cannot become any."""
    try:
        return list(said_blocks(message, f"messages.{at}"))
    except InvalidRequest:
        return None


def _blocks(content: object, place: str) -> list[Block]:
    """Raises: InvalidRequest if `content` is neither text nor a list of blocks with a type."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = held(content, list, place)
    for index, block in enumerate(blocks):
        kind = held(held(block, dict, f"{place}.{index}").get("type"), str, f"{place}.{index}.type")
        if kind == "text":
            held(block.get("text"), str, f"{place}.{index}.text")
    return blocks


def _content(blocks: Sequence[Block]) -> str | list[Json]:
    """One text as text, all else as parts. Blocks that are no parts are left out."""
    parts = [part for block in blocks if (part := part_of(block)) is not None]
    if all(part["type"] == "text" for part in parts) and len(parts) < 2:
        return str(parts[0]["text"]) if parts else ""
    return parts


def _thoughts(blocks: Sequence[Block]) -> Json:
    """Thoughts that a provider of chat completions gave, under the keys under which it gave them."""
    keys: Json = {}
    for block in blocks:
        if block["type"] == "thinking" and not _is_signed(block):
            join_thoughts(keys, thoughts_in(block))
    return keys


def _is_signed(block: Block) -> bool:
    """Whether a block's thoughts are of a provider of Messages, which alone reads them."""
    return bool(block.get("signature")) and unsealed(block["signature"]) is None


def _calls(blocks: Sequence[Block], place: str) -> Json:
    calls = []
    for index, block in enumerate(blocks):
        if block["type"] == "tool_use":
            at = f"{place}.content.{index}"
            held(block.get("id"), str, f"{at}.id")
            name = held(block.get("name"), str, f"{at}.name")
            arguments = json.dumps(held(block.get("input"), dict, f"{at}.input"), ensure_ascii=False)
            function = {"name": name, "arguments": arguments}
            calls.append({"id": block["id"], "type": "function", "function": function})
    return {"tool_calls": calls} if calls else {}


# -- back: chat messages as turns of Messages --


def turns_of(messages: Sequence[Message]) -> tuple[list[Block], list[Json]]:
    """The `system` blocks and the `messages` of a request.

    Results of tools, and the words of the user that follow them, are one turn.

    Raises: InvalidRequest for what Messages cannot say.
    """
    system: list[Block] = []
    turns: list[Json] = []
    last_role = None
    for index, message in enumerate(messages):
        blocks = _given(message) or list(said_blocks(message.wire, f"messages.{index}"))
        if message.role in ("system", "developer"):
            if not turns:
                system += blocks
                continue
            turns.append({"role": "system", "content": blocks})
        elif last_role == "tool" and message.role in ("tool", "user"):
            held(turns[-1]["content"], list, "content").extend(blocks)
        elif blocks or message.role == "user":
            turns.append({"role": "user" if message.role == "tool" else message.role, "content": blocks})
        last_role = message.role
    return system, turns


def _given(message: Message) -> list[Block]:
    """The message's own blocks, without the thoughts of others, which no provider of Messages takes."""
    blocks = message.blocks or ()
    return [block for block in blocks if block["type"] != "thinking" or _is_signed(block)]


def said_blocks(message: Json, place: str) -> Iterator[Block]:
    """The blocks that say a chat message. Raises: InvalidRequest for what Messages cannot say."""
    _check_keys(message, place)
    if message["role"] == "tool":
        yield _result_block(message, place)
        return
    thoughts = message.get("thinking_blocks")
    yield from thoughts if isinstance(thoughts, list) else ()
    blocks = blocks_of(message["content"], place)
    if refusal := message.get("refusal"):
        blocks.append({"type": "text", "text": refusal})
    if mark := message.get("cache_control"):
        blocks[-1:] = [{**block, "cache_control": mark} for block in blocks[-1:]]
    yield from blocks
    calls = message.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        yield _use_block(call, f"{place}.tool_calls.{index}")


def _result_block(message: Json, place: str) -> Block:
    id = held(message.get("tool_call_id"), str, f"{place}.tool_call_id")
    block: Json = {"type": "tool_result", "tool_use_id": id}
    content = message["content"]
    content = content if isinstance(content, str) else blocks_of(content, place)
    mark = message.get("cache_control")
    return {**block, "content": content, **({"cache_control": mark} if mark else {})}


def _use_block(call: object, place: str) -> Block:
    held(call, dict, place)
    assert isinstance(call, dict)
    if call.get("type", "function") != "function":
        raise cannot_say(f"{place}.type", f"a call of type {str(call['type'])[:40]!r}")
    function = held(call.get("function"), dict, f"{place}.function")
    text = function.get("arguments") or "{}"
    try:
        arguments = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise cannot_say(f"{place}.function.arguments", "arguments that are no JSON object")
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _check_keys(message: Json, place: str) -> None:
    if message["role"] == "function":
        raise cannot_say(f"{place}.role", "the role function")
    ignored = _MARKS | {"name"} if message["role"] == "tool" else _MARKS
    for key, value in message.items():
        if value and key not in ignored and key not in _SAID:
            raise cannot_say(f"{place}.{key}", key)
