"""What an OpenAI-compatible provider sends, checked before it is believed. Pure functions of bytes, no HTTP.

Errors quote the provider in full: the caller redacts and shortens them.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2_serve.errors import (
    AnswerWithheld,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
)
from r2_serve.types import FinishReason, Usage

RETRIABLE_STATUSES = frozenset({408, 409, 429})
"""Besides all of 5xx."""
MAX_TOKENS = 10**9
"""Of a usage that is believed."""
_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_REFUSALS = frozenset({"content_filter", "tool_calls", "function_call"})


class _Wire(BaseModel):
    """Only what is read, strictly typed; providers add fields of their own."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Usage(_Wire):
    prompt_tokens: int = Field(ge=0, le=MAX_TOKENS)
    completion_tokens: int = Field(ge=0, le=MAX_TOKENS)

    def record(self) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)


class _TokenLogprob(_Wire):
    logprob: float = Field(allow_inf_nan=False)


class _Logprobs(_Wire):
    content: list[_TokenLogprob] | None = None


class _Text(_Wire):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Wire):
    message: _Text
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(_Wire):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _ChunkChoice(_Wire):
    delta: _Text | None = None
    finish_reason: str | None = None


class _Chunk(_Wire):
    choices: list[_ChunkChoice] = []
    usage: _Usage | None = None


@dataclass(frozen=True)
class ReplyParts:
    """A checked reply; `usage` is None where the provider reported none."""

    text: str
    finish_reason: FinishReason
    usage: Usage | None
    logprobs: tuple[float, ...] | None


def parse_completion(content: bytes) -> ReplyParts:
    """The body of a 200 that was not streamed.

    Raises: InvalidReply, AnswerWithheld; EngineUnavailable and EngineRefused (an error inside). Each with the usage that the body tells.
    """
    body = _json_object(content, "the reply")
    try:
        return _parts(body)
    except EngineError as e:
        e.usage = _told_usage(body)
        raise


def _parts(body: dict[str, Any]) -> ReplyParts:
    _check_error(body)
    try:
        reply = _Completion.model_validate(body)
    except ValidationError as e:
        raise InvalidReply(f"the reply is no chat completion: {_where(e)}") from None
    choice = reply.choices[0]
    _check_refusal(choice.message)
    finish_reason = parse_finish_reason(choice.finish_reason)
    if choice.message.content is None:
        raise InvalidReply("the reply has no content")
    _check_text(choice.message.content)
    tokens = choice.logprobs.content if choice.logprobs else None
    return ReplyParts(
        text=choice.message.content,
        finish_reason=finish_reason,
        usage=reply.usage.record() if reply.usage else None,
        logprobs=tuple(token.logprob for token in tokens) if tokens else None,
    )


class StreamReader:
    """Takes the bytes of an SSE body, gives the text in them. `finish` says whether it was whole.

    Complete means that a finish reason came; `[DONE]` is not required after it, and does not stand in for it. A reply that is no answer
    can be read on, as its usage comes after the finish reason that tells it.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self._failure: EngineError | None = None
        self._finish_reason: FinishReason | None = None
        self._buffer = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Text of each event that `chunk` completes; to be exhausted.

        Raises: InvalidReply; EngineUnavailable and EngineRefused (an error inside). Each with the usage told so far.
        """
        try:
            *lines, self._buffer = (self._buffer + self._decoder.decode(chunk)).split("\n")
        except UnicodeDecodeError:
            raise InvalidReply("the stream is not UTF-8") from None
        for line in lines:
            try:
                piece = self._line(line.removesuffix("\r"))
            except EngineError as e:
                e.usage = self.usage
                raise
            if piece:
                yield piece

    @property
    def has_failed(self) -> bool:
        """The reply is known to be no answer: nothing but its usage is still read."""
        return self._failure is not None

    def finish(self) -> FinishReason:
        """Raises: InvalidReply where the stream broke off or its finish reason is unknown, AnswerWithheld; with the usage told."""
        failure = self._failure
        if failure is None and self._finish_reason is None:
            failure = InvalidReply("the stream ended before the reply did")
        if failure is not None:
            failure.usage = self.usage
            raise failure
        assert self._finish_reason is not None
        return self._finish_reason

    def _line(self, line: str) -> str:
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        if line or not self._data or self.is_done:
            return ""
        data, self._data = "\n".join(self._data), []
        if data.strip() == "[DONE]":
            self.is_done = True
            return ""
        return self._event(data)

    def _event(self, data: str) -> str:
        try:
            body = _json_object(data.encode(), "a stream event")
        except InvalidReply:
            if self.has_failed:
                return ""
            raise
        self.usage = _told_usage(body) or self.usage
        if self.has_failed:
            return ""
        _check_error(body)
        try:
            chunk = _Chunk.model_validate(body)
        except ValidationError as e:
            raise InvalidReply(f"a stream event is no completion chunk: {_where(e)}") from None
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        try:
            if choice.delta is not None:
                _check_refusal(choice.delta)
            if choice.finish_reason is not None:
                self._finish_reason = parse_finish_reason(choice.finish_reason)
        except EngineError as e:
            self._failure = e
            return ""
        text = (choice.delta.content or "") if choice.delta is not None else ""
        _check_text(text)
        return text


def parse_finish_reason(reason: str | None) -> FinishReason:
    """Raises: AnswerWithheld for a filtered reply or a tool call, InvalidReply for anything unknown."""
    if reason in _REFUSALS:
        raise AnswerWithheld(f"the provider gave no answer: finish_reason {reason}")
    if reason not in _FINISH_REASONS:
        raise InvalidReply(f"unknown finish_reason {str(reason)[:40]!r}")
    return _FINISH_REASONS[reason]


def failure_from_status(status: int, headers: Mapping[str, str], content: bytes) -> EngineError:
    """The error that an HTTP status other than 2xx stands for."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    failure = failure_from_body(status, body)
    if isinstance(failure, EngineUnavailable):
        return type(failure)(failure.message, retry_after_s(headers.get("retry-after"), headers.get("date")))
    return failure


def failure_from_body(status: int | None, body: Any) -> EngineError:
    """Likewise where the error is inside a 200; `status` is then the error's own code, None if it names none."""
    error = body.get("error", body) if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    detail = f": {said}" if isinstance(said, str) else ""
    if status is None:
        return InvalidReply(f"the provider sent an error in place of a reply{detail}")
    message = f"the provider answered {status}{detail}"
    if code == "insufficient_quota":
        return EngineRefused(message)
    if status in RETRIABLE_STATUSES:
        return NotStarted(message)
    return EngineUnavailable(message) if status >= 500 else EngineRefused(message)


def retry_after_s(value: str | None, sent: str | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or an HTTP date; None where it says nothing usable.

    A date counts from `sent`, the reply's own Date header, where there is one: our clock may be wrong, or set just now.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until = _date(value)
        if until is None:
            return None
        seconds = (until - (_date(sent or "") or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)


def _json_object(content: bytes, what: str) -> dict[str, Any]:
    """Raises: InvalidReply where it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidReply(f"{what} is not JSON ({len(content)} bytes)") from None
    if not isinstance(body, dict):
        raise InvalidReply(f"{what} is not a JSON object")
    return body


def _check_error(body: dict[str, Any]) -> None:
    """Raises: what `failure_from_body` says where a 200 carries an error."""
    if body.get("error"):
        code = body["error"].get("code") if isinstance(body["error"], dict) else None
        raise failure_from_body(code if isinstance(code, int) and 400 <= code < 600 else None, body)


def _told_usage(body: dict[str, Any]) -> Usage | None:
    """Whatever else `body` holds; None where it tells none that can be true."""
    try:
        return _Usage.model_validate(body.get("usage")).record()
    except ValidationError:
        return None


def _check_refusal(text: _Text) -> None:
    if text.refusal:
        raise AnswerWithheld(f"the model refused: {text.refusal}")


def _check_text(text: str) -> None:
    """JSON can spell half of a surrogate pair, which no UTF-8 can hold: not a trace, not a reply."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidReply("the reply's text is not valid Unicode")


def _where(error: ValidationError) -> str:
    """Field and fault of the first failure, without the input, which might be long or hold the key."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
