"""The tokens and the text of one reply while it is generated, for the engines that decode in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from r2_serve.types import Completion, FinishReason, Usage

UNFINISHED_CHARACTER = "\ufffd"
"""What decoding shows for the first bytes of a character whose rest is not generated yet."""


class Decoder(Protocol):
    """What is used of a transformers tokenizer."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...


@dataclass(frozen=True)
class ReplyLimits:
    """The rules by which a reply ends. `max_tokens` counts the end-of-sequence token too."""

    max_tokens: int
    eos_ids: frozenset[int]
    stop: tuple[str, ...] = ()


class Reply:
    """Tokens and text of one row while they are generated. Text is decoded only when it is needed."""

    def __init__(self, decoder: Decoder, limits: ReplyLimits, *, is_streamed: bool) -> None:
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[float] = []
        self.num_tokens = 0
        self._decoder = decoder
        self._limits = limits
        self._is_incremental = is_streamed or bool(limits.stop)
        self._ids: list[int] = []
        self._text = ""
        self._num_sent = 0
        # The text of a token depends on its neighbours: ids[start:read] are shown and give context.
        self._start = self._read = 0

    def push(self, token: int) -> None:
        """Take the next token; `finish_reason` is set if it was the last."""
        self.num_tokens += 1
        if token in self._limits.eos_ids:
            self.finish_reason = "stop"
        else:
            self._ids.append(token)
            if self._is_incremental:
                self._grow()
        if self.finish_reason is None and self.num_tokens >= self._limits.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and self._is_incremental:
            self._grow(is_last=True)

    @property
    def max_tokens(self) -> int:
        return self._limits.max_tokens

    def take_piece(self) -> str:
        """Text that is new since the last call, less an end that might be the beginning of a stop string."""
        held = 0 if self.finish_reason else max((len(stop) - 1 for stop in self._limits.stop), default=0)
        end = max(self._num_sent, len(self._text) - held)
        piece, self._num_sent = self._text[self._num_sent : end], end
        return piece

    def completion(self, num_prompt_tokens: int) -> Completion:
        """The finished reply."""
        assert self.finish_reason is not None
        return Completion(
            text=self._text if self._is_incremental else self._decode(self._ids),
            usage=Usage(prompt_tokens=num_prompt_tokens, completion_tokens=self.num_tokens),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) or None,
        )

    def _grow(self, is_last: bool = False) -> None:
        shown = self._decode(self._ids[self._start : self._read])
        window = self._decode(self._ids[self._start :])
        if len(window) <= len(shown) or (window.endswith(UNFINISHED_CHARACTER) and not is_last):
            return
        self._start, self._read = self._read, len(self._ids)
        searched = len(self._text) - max((len(stop) for stop in self._limits.stop), default=0)
        self._text += window[len(shown) :]
        found = [at for stop in self._limits.stop if (at := self._text.find(stop, max(searched, 0))) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.finish_reason = "stop"

    def _decode(self, ids: list[int]) -> str:
        return (
            self._decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if ids
            else ""
        )
