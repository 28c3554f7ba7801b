"""Tokens of a call that are not counted: the most it can use, and what it has likely used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from r2_serve.calls.token_rates import TokenRate
from r2_serve.config import ModelConfig
from r2_serve.types import Json, Message, Usage, likely_tokens

TEMPLATE_TOKENS_PER_MESSAGE = 16
"""Allowance for the chat template around each message."""
MEDIA_CHARS_PER_TOKEN = 10
"""Characters of JSON per token of audio and files. Base64 of speech has hundreds, of a dense PDF about 10."""
_SAID_BLOCKS = frozenset({"text", "image", "document", "tool_use", "tool_result"})
"""Blocks of Messages that stand in the message itself too; thoughts and search results do not."""
DENSE_RUN_CHARS, DENSE_CHARS_PER_TOKEN = 20, 1.25
"""Characters between blanks beyond which a text is no words (base64, hashes, minified code), and the
characters that a token of it has at least, on average."""
MAX_TEMPLATE_SHARE = 0.1
"""Prompts are learned from if the chat template counts for no more of them than this: many short messages
would teach the rate of the template, which is counted too high, and not that of the text."""
BYTES_PER_FOREIGN_TOKEN = 2
"""UTF-8 bytes per token of text beyond ASCII: a Chinese character is 1.5 tokens."""


@dataclass(frozen=True)
class Prompt:
    """What a call sends and is billed for."""

    messages: Sequence[Message]
    format_sent: Mapping[str, object] | None = None
    """The JSON schema or response format that is sent with the messages, if any."""
    forwarded: Json = field(default_factory=dict)
    """Parameters that R2 does not interpret; `tools` are a part of the prompt."""
    chars_per_token: float = 2.5
    image_tokens: int = 2_000
    num_tokens: int | None = None
    """Tokens of the messages by the model's own tokenizer; None if it is not at hand."""
    rate: TokenRate = field(default_factory=TokenRate)

    @classmethod
    def to(
        cls,
        model: ModelConfig,
        messages: Sequence[Message],
        format_sent: Mapping[str, object] | None,
        forwarded: Json | None = None,
        *,
        num_tokens: int | None = None,
        rate: TokenRate | None = None,
    ) -> Prompt:
        """The prompt of `messages` to `model`, which is sent a schema only if its provider takes one."""
        sent = format_sent if model.sends_schema else None
        known = {} if rate is None or model.has_fixed_rate else {"rate": rate}
        return cls(
            messages,
            sent,
            forwarded or {},
            model.chars_per_token,
            model.image_tokens,
            num_tokens,
            **known,
        )

    def most_usage(self, max_tokens: int, more_tokens: int = 0) -> Usage:
        """An upper bound for ordinary text; exact if the model's tokenizer is at hand.

        `more_tokens` are those of the prompt that are not written yet. Source of the bound: characters,
        weighted by what the model has reported (`token_rates`).
        """
        prompt_tokens = self.num_tokens
        if prompt_tokens is None:
            prompt_tokens = math.ceil(self.counted_tokens * self.rate.most) + self._wordless_tokens
        return Usage(prompt_tokens=prompt_tokens + more_tokens, completion_tokens=max_tokens)

    def likely_usage(self, received_bytes: int, max_tokens: int | None) -> Usage:
        """An estimate within that bound, for a call that was sent but reported no usage."""
        received = likely_tokens(received_bytes)
        return Usage(
            prompt_tokens=self.likely_prompt_tokens,
            completion_tokens=received if max_tokens is None else min(received, max_tokens),
        )

    @cached_property
    def counted_tokens(self) -> int:
        """Tokens of text and chat template by their characters alone."""
        words = (text for text in self._texts() if not _is_dense(text))
        return sum(_most_tokens(text, self.chars_per_token) for text in words) + self._template_tokens

    @property
    def _template_tokens(self) -> int:
        return TEMPLATE_TOKENS_PER_MESSAGE * (len(self.messages) + 1)

    def learn(self, usage: Usage) -> None:
        """Learns from what the model reported of this prompt, if it holds little but words."""
        is_text = self._template_tokens <= MAX_TEMPLATE_SHARE * self.counted_tokens
        if is_text and not self._wordless_tokens:
            self.rate.learn(self.counted_tokens, usage.prompt_tokens)

    @cached_property
    def _wordless_tokens(self) -> int:
        """Tokens of images and files, and of texts without words, whose rate is not learned."""
        dense = (text for text in self._texts() if _is_dense(text))
        rate = min(DENSE_CHARS_PER_TOKEN, self.chars_per_token)
        return sum(_most_tokens(text, rate) for text in dense) + self._media_tokens()

    @property
    def likely_prompt_tokens(self) -> int:
        """An estimate of the prompt's tokens, as long as its usage is not reported."""
        if self.num_tokens is not None:
            return self.num_tokens
        likely = self.rate.likely
        if likely is not None:
            return math.ceil(self.counted_tokens * likely) + self._wordless_tokens
        return sum(likely_tokens(len(text.encode())) for text in self._texts()) + self._media_tokens()

    def _texts(self) -> Iterator[str]:
        """The text of each message, and as JSON what else is a part of the prompt."""
        for message in self.messages:
            yield message.text
            if message.more:
                yield json.dumps(message.more)
            if unsaid := [block for block in message.blocks or () if block["type"] not in _SAID_BLOCKS]:
                yield json.dumps(unsaid)
        if self.format_sent is not None:
            yield json.dumps(self.format_sent)
        if tools := self.forwarded.get("tools") or self.forwarded.get("functions"):
            yield json.dumps(tools)

    def _media_tokens(self) -> int:
        contents = (message.content for message in self.messages if isinstance(message.content, tuple))
        return sum(self._part_tokens(part) for content in contents for part in content)

    def _part_tokens(self, part: Json) -> int:
        """An estimate of the tokens of a part that is no text."""
        if part["type"] in ("text", "image_url"):
            return self.image_tokens if part["type"] == "image_url" else 0
        return math.ceil(len(json.dumps(part)) / MEDIA_CHARS_PER_TOKEN)


def _most_tokens(text: str, chars_per_token: float) -> int:
    """Digits count as one token each, as some tokenizers have it."""
    num_ascii = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    num_digits = sum(map(text.count, "0123456789"))
    foreign = (len(text.encode()) - num_ascii) / BYTES_PER_FOREIGN_TOKEN
    return math.ceil(num_digits + (num_ascii - num_digits) / chars_per_token + foreign)


def _is_dense(text: str) -> bool:
    """Whether a long text has so few blanks that it holds no words. Other scripts than ASCII need none."""
    is_long = len(text) > 10 * DENSE_RUN_CHARS and text.isascii()
    return is_long and len(text) > DENSE_RUN_CHARS * (1 + text.count(" ") + text.count("\n"))


def format_chars(format_sent: Mapping[str, object] | None) -> int:
    """Length of a schema or response format as JSON, in the ASCII that it is sent in."""
    return 0 if format_sent is None else len(json.dumps(format_sent))
