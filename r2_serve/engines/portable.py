"""Conversations as providers of chat completions take them.

Clients of other dialects send what these providers do not know: images in results of tools, thoughts of
another model, messages of the role `developer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from urllib.parse import urlsplit

from r2_serve.dialects.sealing import KEYS
from r2_serve.engines.roles import with_system_role
from r2_serve.types import Json, Message, Sampling

KNOWS_DEVELOPER = "openai.com"
"""End of the hosts that know the role `developer`. Chat templates behind others refuse it, or drop it."""
THOUGHTS = frozenset(KEYS)
_SEALED = frozenset({"thinking_blocks"})
"""Thoughts that only the provider of another dialect reads."""


def knows_developer(url: str) -> bool:
    """Whether the provider at `url` takes messages of the role `developer`."""
    return (urlsplit(url).hostname or "").endswith(KNOWS_DEVELOPER)


def write_for_openai(body: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """A body for OpenAI's own API, which knows no thoughts in a message and refuses what it does not know."""
    return _written(body, messages, [_without(message, THOUGHTS) for message in _texts(messages, sampling)])


def write_portable(body: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    """A body for any other provider: it knows no `developer`, and may read thoughts that it wrote itself."""
    changed = with_system_role(_texts(messages, sampling))
    if _is_translated(sampling):
        changed = [_without(message, _SEALED) for message in changed]
    return _written(body, messages, changed)


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
                media += [_label(message), *found]
                text = message.text or "The result is in the next message of the user."
                message = message.model_copy(update={"content": text})
        yield message
    if media:
        yield Message(role="user", content=tuple(media))


def _label(result: Message) -> Json:
    return {"type": "text", "text": f"From tool call {result.more.get('tool_call_id')}:"}


def _texts(messages: Sequence[Message], sampling: Sampling) -> Sequence[Message]:
    return list(with_text_results(messages)) if _is_translated(sampling) else messages


def _is_translated(sampling: Sampling) -> bool:
    """Whether the client spoke another dialect. What a client of chat completions sends passes as it came."""
    return sampling.responses is not None or sampling.messages_api is not None


def _without(message: Message, keys: frozenset[str]) -> Message:
    if keys.isdisjoint(message.more):
        return message
    more = {key: value for key, value in message.more.items() if key not in keys}
    return message.model_copy(update={"more": more})


def _written(body: Json, messages: Sequence[Message], changed: Sequence[Message]) -> Json:
    """The body with the changed messages; the same one if none is changed, which is the usual case."""
    if len(changed) == len(messages) and all(map(is_, changed, messages)):
        return body
    return {**body, "messages": [message.wire for message in changed]}
