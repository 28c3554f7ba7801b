"""Tokens of a call that nobody has counted: the most it can use, and what it has likely used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r2_serve.config import ModelConfig
from r2_serve.types import Message, Usage, likely_tokens

TEMPLATE_TOKENS_PER_MESSAGE = 16
"""Allowance for the chat template around each message."""


@dataclass(frozen=True)
class Prompt:
    """What a call sends and is billed for."""

    messages: Sequence[Message]
    format_sent: Mapping[str, object] | None = None
    """The JSON schema or response format that is sent with the messages, if any."""

    @classmethod
    def to(
        cls, model: ModelConfig, messages: Sequence[Message], format_sent: Mapping[str, object] | None
    ) -> Prompt:
        """The prompt of `messages` to `model`, which is sent a schema only if its provider takes one."""
        return cls(messages, format_sent if model.sends_schema else None)

    def most_usage(self, max_tokens: int) -> Usage:
        """An upper bound: byte-level tokenizers never make more tokens than bytes."""
        template = TEMPLATE_TOKENS_PER_MESSAGE * (len(self.messages) + 1)
        return Usage(prompt_tokens=sum(self._sizes()) + template, completion_tokens=max_tokens)

    def likely_usage(self, received_bytes: int, max_tokens: int) -> Usage:
        """An estimate within that bound, for a call that was sent but reported no usage."""
        return Usage(
            prompt_tokens=sum(map(likely_tokens, self._sizes())),
            completion_tokens=min(likely_tokens(received_bytes), max_tokens),
        )

    def _sizes(self) -> list[int]:
        """UTF-8 bytes of each message and of the format."""
        return [*(len(m.text.encode()) for m in self.messages), format_chars(self.format_sent)]


def format_chars(format_sent: Mapping[str, object] | None) -> int:
    """Length of a schema or response format as JSON, in the ASCII that it is sent in."""
    return 0 if format_sent is None else len(json.dumps(format_sent))
