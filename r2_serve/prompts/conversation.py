"""The client's conversation inside our prompts: it comes first, and the same in each of them.

Providers cache the beginning of a prompt. So the conversation stands at the top of every prompt of a query,
with its messages in their roles, and what we ask of a model comes after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from r2_serve.types import Json, Message

_TAG = re.compile(r"<(/?\s*(?:plan|step|answer_|task))", re.IGNORECASE)


def asked(text: str) -> tuple[Message, ...]:
    """The conversation that has one question only."""
    return (Message(role="user", content=text),)


def conversation_text(messages: Sequence[Message]) -> str:
    """The conversation as one text; a single message is left as it is."""
    if len(messages) == 1:
        return messages[0].text
    return "\n".join(f"[{message.role}] {message.text}" for message in messages)


def instructions_of(messages: Sequence[Message]) -> list[Message]:
    """The client's system and developer messages."""
    return [message for message in messages if message.role in ("system", "developer")]


def without_tool_calls(messages: Sequence[Message]) -> list[Message]:
    """The conversation with calls of tools and their results as text of the assistant who made the calls.

    So a step that has no tools can read what was found with them."""
    told: list[Message] = []
    for message in messages:
        if message.role in ("tool", "function"):
            text = f"[the tool answered: {message.text}]"
        elif message.more.get("tool_calls") or message.more.get("function_call"):
            calls = message.more.get("tool_calls") or message.more.get("function_call")
            text = f"{message.text}\n[called tools: {json.dumps(calls)}]".lstrip()
        else:
            told.append(message)
            continue
        before = told.pop().text + "\n" if told and told[-1].role == "assistant" else ""
        told.append(Message(role="assistant", content=before + text))
    return told


def without_media(messages: Iterable[Message]) -> list[Message]:
    """The conversation with the name of its kind in place of each image, sound or file."""
    named: list[Message] = []
    for message in messages:
        parts = message.content
        if isinstance(parts, tuple) and any(part.get("type", "text") != "text" for part in parts):
            message = message.saying(tuple(map(_named, parts)))
        named.append(message)
    return named


def _named(part: Json) -> Json:
    kind = str(part.get("type", "text"))
    return part if kind == "text" else {"type": "text", "text": f"[{kind}]"}


def followed_by(messages: Sequence[Message], ours: str) -> list[Message]:
    """The conversation with our text after it.

    The text becomes the end of the user's last message, as some chat templates refuse two user messages in a
    row; after a message of another role it is a user message of its own.
    """
    before = [_escaped(message) for message in messages]
    if not before or before[-1].role != "user":
        return [*before, Message(role="user", content=ours)]
    return [*before[:-1], before[-1].followed_by(ours)]


def tagged(tag: str, text: str) -> str:
    """`text` between tags; our own tags inside it are escaped."""
    return f"<{tag}>\n{_without_tags(text)}\n</{tag}>"


def _without_tags(text: str) -> str:
    """`text` with our own tags escaped, so that data cannot end or begin a frame."""
    return _TAG.sub(lambda match: f"<\\{match.group(1)}", text)


def _escaped(message: Message) -> Message:
    content = message.content
    if isinstance(content, str):
        safe: str | tuple[Json, ...] = _without_tags(content)
    else:
        safe = tuple(map(_escaped_part, content or ()))
    return message if content is None or safe == content else message.saying(safe)


def _escaped_part(part: Json) -> Json:
    text = part.get("text")
    return {**part, "text": _without_tags(text)} if isinstance(text, str) else part
