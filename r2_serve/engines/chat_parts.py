"""The parts of replies and stream chunks that hosted engines and clients of our own endpoint read.

What would change the answer is checked strictly. Everything else is tolerated: null in place of a list,
unknown fields, token counts and log-probabilities that make no sense.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from r2_serve.errors import AnswerFiltered, AnswerWithheld, InvalidReply
from r2_serve.types import FinishReason, Usage

MAX_TOKENS = 10**9
"""The largest token count that is believed."""
UNFINISHED = frozenset({"", "null", "none"})
"""Texts that some servers send as `finish_reason` in place of null."""
_FINISH_REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("stop_sequence", "stop_token", "finish_reason_stop"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length", "max_output_tokens"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "finish_reason_max_tokens"), "length"),
}
"""OpenAI's finish reason for each one that servers are known to send, in lower case."""
_WITHHELD: dict[str, FinishReason] = {
    **dict.fromkeys(("tool_calls", "tool_use", "tool_call"), "tool_calls"),
    "function_call": "function_call",
    **dict.fromkeys(("content_filter", "content_filtered", "refusal", "safety"), "content_filter"),
    **dict.fromkeys(("recitation", "blocklist", "prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("sensitive", "guardrail_intervened"), "content_filter"),
}
"""OpenAI's names of the finish reasons of replies that hold no answer in text."""
_THOUGHT_PARTS = frozenset({"thinking", "reasoning"})
T = TypeVar("T")


def _none_if_odd(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValidationError:
        return None


def _empty_if_null(value: object) -> object:
    return [] if value is None else value


def _joined_parts(content: object) -> object:
    """The text of a content that comes as a list of text parts and thoughts; anything else unchanged."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind not in _THOUGHT_PARTS:
            return content
    return "".join(texts)


Tolerated = Annotated[T | None, WrapValidator(_none_if_odd)]
Count = Tolerated[Annotated[int, Field(ge=0, le=MAX_TOKENS)]]


class Part(BaseModel):
    """Base of what is read: strictly typed, with the fields that are used and no others."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _PromptDetails(Part):
    cached_tokens: Count = None
    cache_write_tokens: Count = None


class _CacheWrites(Part):
    ephemeral_1h_input_tokens: Count = None


class _CompletionDetails(Part):
    reasoning_tokens: Count = None


class Tokens(Part):
    """`usage`. A count is None if the provider reports none that can be true."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    total_tokens: Count = None
    prompt_tokens_details: Tolerated[_PromptDetails] = None
    completion_tokens_details: Tolerated[_CompletionDetails] = None
    prompt_cache_hit_tokens: Count = None
    """DeepSeek's name of the tokens read from the cache."""
    cached_tokens: Count = None
    """Moonshot's name of them."""
    cache_read_input_tokens: Count = None
    """Anthropic's name of them, which gateways keep."""
    cache_creation_input_tokens: Count = None
    cache_creation: Tolerated[_CacheWrites] = None
    """Anthropic's tokens written to the cache, by how long it keeps them."""

    def whole(self) -> Usage | None:
        """The counts with their details; None if one of the two counts is missing.

        xAI and Gemini leave thoughts out of `completion_tokens`, but not out of `total_tokens`. Details that
        are more than their count are not believed.
        """
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        completion, thoughts = self.completion_tokens, self._reasoning_tokens
        left_out = (self.total_tokens or 0) - self.prompt_tokens - completion
        if left_out > 0 and thoughts in (0, left_out):
            completion, thoughts = completion + left_out, left_out
        read, written = self._cached_read_tokens, self._cached_write_tokens
        for_an_hour = (self.cache_creation and self.cache_creation.ephemeral_1h_input_tokens) or 0
        is_part = read + written <= self.prompt_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion,
            cached_read_tokens=read if is_part else 0,
            cached_write_tokens=written if is_part else 0,
            cached_hour_write_tokens=for_an_hour if is_part and for_an_hour <= written else 0,
            reasoning_tokens=thoughts if thoughts <= completion else 0,
        )

    def completed(self, estimate: Usage) -> Usage:
        """The two counts, with each missing one taken from `estimate`."""
        counts = self.model_dump(include={"prompt_tokens", "completion_tokens"}, exclude_none=True)
        return estimate.model_copy(update=counts)

    @property
    def _cached_read_tokens(self) -> int:
        details = self.prompt_tokens_details
        named = (self.prompt_cache_hit_tokens, self.cached_tokens, self.cache_read_input_tokens)
        return (details and details.cached_tokens) or next(filter(None, named), 0)

    @property
    def _cached_write_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details and details.cache_write_tokens) or self.cache_creation_input_tokens or 0

    @property
    def _reasoning_tokens(self) -> int:
        details = self.completion_tokens_details
        return (details and details.reasoning_tokens) or 0


class Text(Part):
    """`message` or `delta`."""

    content: Annotated[str | None, BeforeValidator(_joined_parts)] = None
    refusal: str | None = None


class ChunkChoice(Part):
    """One of a chunk's choices. Azure sends some without a delta."""

    index: Count = None
    delta: Text | None = None
    finish_reason: str | None = None
    error: object = None


class _GroqExtras(Part):
    usage: Tolerated[Tokens] = None


class Reported(Part):
    """What both a whole reply and a chunk report of the call."""

    usage: Tolerated[Tokens] = None
    x_groq: Tolerated[_GroqExtras] = None

    @property
    def tokens(self) -> Tokens | None:
        """`usage`, which Groq puts into `x_groq`; None if there is none."""
        return self.usage or (self.x_groq.usage if self.x_groq else None)


class Chunk(Reported):
    """One event of a streamed reply."""

    choices: Annotated[list[ChunkChoice], BeforeValidator(_empty_if_null)] = []
    error: object = None


class _TokenLogprob(Part):
    logprob: float = Field(allow_inf_nan=False)


class Logprobs(Part):
    content: list[_TokenLogprob] | None = None


class Choice(Part):
    """One of a whole reply's choices."""

    message: Text
    finish_reason: str | None = None
    logprobs: Tolerated[Logprobs] = None
    error: object = None


class ChatCompletion(Reported):
    """A whole reply."""

    choices: list[Choice] = Field(min_length=1)


def is_finished(reason: str | None) -> bool:
    """Whether a chunk's `finish_reason` ends the reply."""
    return reason is not None and reason.strip().lower() not in UNFINISHED


def parse_finish_reason(reason: str | None, *, is_verbatim: bool = False) -> FinishReason:
    """OpenAI's name of `reason`.

    Raises: InvalidReply for anything unknown; unless `is_verbatim`, AnswerWithheld for a filtered reply or a
    tool call.
    """
    known = (reason or "").strip().lower()
    if known in _WITHHELD and not is_verbatim:
        error = AnswerFiltered if _WITHHELD[known] == "content_filter" else AnswerWithheld
        raise error(f"the provider gave no answer: finish_reason {reason}")
    found = _FINISH_REASONS.get(known) or _WITHHELD.get(known)
    if found is None:
        raise InvalidReply(f"unknown finish_reason {str(reason)[:40]!r}")
    return found


def first_fault(error: ValidationError) -> str:
    """Field and fault of the first failure, without the input, which might be long or hold a key."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the body'}: {fault['msg']}"
