"""Conversations as providers of chat completions take them, where the client spoke another dialect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

from r2_serve.engines.roles import with_system_role
from r2_serve.types import Json, Message, Sampling

KNOWS_DEVELOPER = "openai.com"
"""End of the hosts that know the role `developer`. Chat templates behind others refuse it, or drop it."""


def knows_developer(url: str) -> bool:
    """Whether the provider at `url` takes messages of the role `developer`."""
    return (urlsplit(url).hostname or "").endswith(KNOWS_DEVELOPER)


def write_portable(body: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """A body for a provider of chat completions, whose results of tools are text alone."""
    if sampling.responses is None and sampling.messages_api is None:
        return body
    return {**body, "messages": [message.wire for message in with_text_results(messages)]}


def write_with_system_role(body: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """The same for a provider that knows no `developer`."""
    if any(message.role == "developer" for message in messages):
        messages = with_system_role(messages)
        body = {**body, "messages": [message.wire for message in messages]}
    return write_portable(body, messages, sampling)


def with_text_results(messages: Iterable[Message]) -> Iterator[Message]:
    """The conversation with images and files of tool results in a message of the user after them.

    The API takes only text in messages of the role `tool`
    (https://platform.openai.com/docs/api-reference/chat/create).
    """
    media: list[Json] = []
    for message in messages:
        if message.role != "tool" and media:
            yield Message(role="user", content=tuple(media))
            media = []
        if message.role == "tool" and isinstance(message.content, tuple):
            found = [part for part in message.content if part["type"] != "text"]
            if found:
                media += [
                    {"type": "text", "text": f"From tool call {message.more.get('tool_call_id')}:"},
                    *found,
                ]
                text = message.text or "The result is in the next message of the user."
                message = message.model_copy(update={"content": text})
        yield message
    if media:
        yield Message(role="user", content=tuple(media))
