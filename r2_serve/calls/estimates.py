"""Tokens of a call that are not counted: the most it can use, and what it has likely used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from r2_serve.config import ModelConfig
from r2_serve.types import Json, Message, Usage, likely_tokens

TEMPLATE_TOKENS_PER_MESSAGE = 16
"""Allowance for the chat template around each message."""


IMAGE_TOKENS = 2_000
"""Allowance for an image; providers bill 85 to about 1,700 tokens."""
MEDIA_CHARS_PER_TOKEN = 10
"""Characters of JSON per token of audio and files. Base64 of speech has hundreds, of a dense PDF about 10."""


@dataclass(frozen=True)
class Prompt:
    """What a call sends and is billed for."""

    messages: Sequence[Message]
    format_sent: Mapping[str, object] | None = None
    """The JSON schema or response format that is sent with the messages, if any."""
    forwarded: Json = field(default_factory=dict)
    """Parameters that R2 does not interpret; `tools` are a part of the prompt."""
    chars_per_token: float = 2.5

    @classmethod
    def to(
        cls,
        model: ModelConfig,
        messages: Sequence[Message],
        format_sent: Mapping[str, object] | None,
        forwarded: Json | None = None,
    ) -> Prompt:
        """The prompt of `messages` to `model`, which is sent a schema only if its provider takes one."""
        sent = format_sent if model.sends_schema else None
        return cls(messages, sent, forwarded or {}, model.chars_per_token)

    def most_usage(self, max_tokens: int) -> Usage:
        """An upper bound for ordinary text: `chars_per_token` of ASCII, two bytes a token otherwise."""
        template = TEMPLATE_TOKENS_PER_MESSAGE * (len(self.messages) + 1)
        text = sum(_most_tokens(text, self.chars_per_token) for text in self._texts())
        prompt_tokens = text + template + self._media_tokens()
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=max_tokens)

    def likely_usage(self, received_bytes: int, max_tokens: int | None) -> Usage:
        """An estimate within that bound, for a call that was sent but reported no usage."""
        text, received = (
            sum(likely_tokens(len(t.encode())) for t in self._texts()),
            likely_tokens(received_bytes),
        )
        return Usage(
            prompt_tokens=text + self._media_tokens(),
            completion_tokens=received if max_tokens is None else min(received, max_tokens),
        )

    def _texts(self) -> Iterator[str]:
        """The text of each message, and as JSON what else is a part of the prompt."""
        for message in self.messages:
            yield message.text
            if message.more:
                yield json.dumps(message.more)
        if self.format_sent is not None:
            yield json.dumps(self.format_sent)
        if tools := self.forwarded.get("tools") or self.forwarded.get("functions"):
            yield json.dumps(tools)

    def _media_tokens(self) -> int:
        contents = (message.content for message in self.messages if isinstance(message.content, tuple))
        return sum(_part_tokens(part) for content in contents for part in content)


def _most_tokens(text: str, chars_per_token: float) -> int:
    num_ascii = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return math.ceil(num_ascii / chars_per_token + (len(text.encode()) - num_ascii) / 2)


def _part_tokens(part: Json) -> int:
    """An estimate of the tokens of a part that is no text."""
    if part["type"] in ("text", "image_url"):
        return IMAGE_TOKENS if part["type"] == "image_url" else 0
    return math.ceil(len(json.dumps(part)) / MEDIA_CHARS_PER_TOKEN)


def format_chars(format_sent: Mapping[str, object] | None) -> int:
    """Length of a schema or response format as JSON, in the ASCII that it is sent in."""
    return 0 if format_sent is None else len(json.dumps(format_sent))
