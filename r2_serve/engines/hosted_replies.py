"""What an OpenAI-compatible provider sends, checked before it is believed. Pure functions of bytes, no HTTP.

Errors quote the provider in full: the caller redacts and shortens them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.dialects.wire import NATIVE
from r2_serve.engines.chat_parts import (
    ChatCompletion,
    Chunk,
    ChunkChoice,
    Reported,
    Text,
    Tokens,
    first_fault,
    is_finished,
    parse_finish_reason,
)
from r2_serve.engines.events import DONE, IGNORED_EVENTS, EventReader, EventStreamError
from r2_serve.engines.provider_errors import failure_from_body
from r2_serve.engines.wires import ReadEvent, one, same
from r2_serve.errors import AnswerFiltered, EngineError, InvalidReply
from r2_serve.types import Delta, FinishReason, Json, Usage

_HEAD = frozenset({"id", "object", "created", "model", "usage", "x_groq"})
"""Keys of a chunk that the router writes itself."""


@dataclass(frozen=True)
class ReplyParts:
    """A checked reply."""

    text: str
    others: tuple[str, ...]
    """Texts of the further choices; empty for one without text."""
    finish_reason: FinishReason
    tokens: Tokens
    logprobs: tuple[float, ...] | None
    body: Json
    """The whole reply, with OpenAI's names of the finish reasons."""


def parse_completion(
    content: bytes, read: Callable[[Json], Json] = same, *, is_verbatim: bool = False
) -> ReplyParts:
    """The body of a 200 that was not streamed. Tool calls and refusals are answers if `is_verbatim`.

    `read` makes a chat completion of another provider's reply.

    Raises: InvalidReply, AnswerWithheld; EngineUnavailable and EngineRefused for an error inside. Each
    carries the usage that the body reports.
    """
    body = _json_object(content, "the reply")
    body = read(body)
    try:
        return _parts(body, is_verbatim)
    except EngineError as e:
        tokens = Reported.model_validate(body).tokens
        e.usage = tokens.whole() if tokens else None
        raise


def parse_count(content: bytes) -> int:
    """The number of tokens that a provider counts in a prompt. Raises: InvalidReply."""
    count = _json_object(content, "the count").get("input_tokens")
    if not isinstance(count, int) or count < 0:
        raise InvalidReply("the provider counted no tokens")
    return count


def _parts(body: Json, is_verbatim: bool) -> ReplyParts:
    _check_error(body)
    try:
        reply = ChatCompletion.model_validate(body)
    except ValidationError as e:
        raise InvalidReply(f"the reply is no chat completion: {first_fault(e)}") from None
    first, came = reply.choices[0], as_objects(body["choices"])
    for choice, raw in zip(reply.choices if is_verbatim else [first], came, strict=False):
        _check_error({"error": choice.error})
        if not is_verbatim:
            _check_refusal(choice.message)
        reason = raw["finish_reason"] = parse_finish_reason(choice.finish_reason, is_verbatim=is_verbatim)
        if choice.message.content is None and reason != "length" and not (is_verbatim and _holds_more(raw)):
            raise InvalidReply("the reply has no content")
        _check_text(choice.message.content or "")
    logprobs = first.logprobs.content if first.logprobs else None
    return ReplyParts(
        text=first.message.content or "",
        others=tuple(choice.message.content or "" for choice in reply.choices[1:]),
        finish_reason=parse_finish_reason(first.finish_reason, is_verbatim=is_verbatim),
        tokens=reply.tokens or Tokens(),
        logprobs=tuple(token.logprob for token in logprobs) if logprobs else None,
        body=body,
    )


def _holds_more(choice: Json) -> bool:
    """Whether a choice without text has another answer, such as a tool call, a refusal or audio."""
    more = {**as_object(choice.get("message")), "role": None, "content": None}
    return choice.get("finish_reason") == "content_filter" or any(more.values())


class StreamReader:
    """Takes the bytes of a streamed reply and gives its pieces. `finish` says whether the reply is whole.

    A reply is whole once each choice has a finish reason; `[DONE]` is neither required after it nor taken in
    its place. A failed reply can be read on for its usage, which comes last. Pieces hold the text of the
    first choice; if `is_verbatim`, also the chunk as it came, and tool calls and refusals are answers.
    """

    def __init__(self, read: ReadEvent = one, *, is_verbatim: bool = False) -> None:
        """`read` makes the chat chunks of another provider's events."""
        self.tokens = Tokens()
        self.usage_body: object = None
        """`usage` as it came."""
        self.is_done = False
        self._events = EventReader()
        self._read = read
        self._failure: EngineError | None = None
        self._is_verbatim = is_verbatim
        self._finish_reasons: dict[int, FinishReason | None] = {}
        """The finish reason of each choice seen, by index; None for one that is not finished."""

    @property
    def usage(self) -> Usage | None:
        """What the provider reported so far; None if a count is missing."""
        return self.tokens.whole()

    @property
    def has_failed(self) -> bool:
        """Whether the reply is known to be no answer: nothing but its usage is still read."""
        return self._failure is not None

    def feed(self, chunk: bytes) -> Iterator[Delta]:
        """The piece of each event that `chunk` completes; to be exhausted.

        Raises: InvalidReply; EngineUnavailable and EngineRefused for an error inside. Each carries the usage.
        """
        try:
            events = self._events.feed(chunk)
        except EventStreamError as e:
            raise InvalidReply(str(e)) from None
        for data in events:
            try:
                yield from self._event(data)
            except EngineError as e:
                e.usage = self.usage
                raise

    def finish(self) -> FinishReason:
        """The finish reason.

        Raises: InvalidReply if the stream broke off or its finish reason is unknown; AnswerWithheld.
        """
        reasons = self._finish_reasons
        if self._failure is None and reasons and None not in reasons.values():
            return next(reason for _, reason in sorted(reasons.items()) if reason is not None)
        failure = self._failure or InvalidReply("the stream ended before the reply did")
        failure.usage = self.usage
        raise failure

    def _event(self, data: str) -> Iterator[Delta]:
        stripped = data.strip()
        if self.is_done or stripped in IGNORED_EVENTS:
            return
        if stripped == DONE:
            self.is_done = True
            return
        try:
            body = _json_object(data.encode(), "a stream event")
        except InvalidReply:
            if self.has_failed:
                return
            raise
        chunks = self._read(body)
        self.is_done = chunks is None
        for chunk in chunks or ():
            self._read_usage(chunk)
            if not self.has_failed and (piece := self._piece(chunk)) is not None:
                yield piece

    def _read_usage(self, body: Json) -> None:
        is_reported = body.get("usage") or body.get("x_groq")
        if is_reported and (tokens := Reported.model_validate(body).tokens):
            self.tokens, self.usage_body = tokens, body.get("usage")

    def _piece(self, body: Json) -> Delta | None:
        _check_error(body)
        try:
            chunk = Chunk.model_validate(body)
        except ValidationError as e:
            raise InvalidReply(f"a stream event is no completion chunk: {first_fault(e)}") from None
        choices = chunk.choices if self._is_verbatim else chunk.choices[:1]
        if not choices:
            is_native = self._is_verbatim and not NATIVE.isdisjoint(body)
            return Delta(body=self._without_head(body)) if is_native else None
        texts = [self._text(*pair) for pair in zip(choices, as_objects(body["choices"]), strict=False)]
        if self.has_failed:
            return None
        text = texts[0] if not (choices[0].index and self._is_verbatim) else ""
        if self._is_verbatim:
            return Delta(text=text, body=self._without_head(body))
        return Delta(text=text) if text else None

    def _without_head(self, body: Json) -> Json:
        return {key: body[key] for key in body if key not in _HEAD}

    def _text(self, choice: ChunkChoice, raw: Json) -> str:
        """The text of a choice, whose finish reason is noted."""
        _check_error({"error": choice.error})
        delta, reason = choice.delta or Text(), None
        try:
            if not self._is_verbatim:
                _check_refusal(delta)
            if is_finished(choice.finish_reason):
                reason = parse_finish_reason(choice.finish_reason, is_verbatim=self._is_verbatim)
        except EngineError as e:
            self._failure = e
            return ""
        raw["finish_reason"] = reason
        index = choice.index or 0 if self._is_verbatim else 0
        self._finish_reasons[index] = reason or self._finish_reasons.get(index)
        _check_text(delta.content or "")
        return delta.content or ""


def _json_object(content: bytes, what: str) -> dict[str, object]:
    """Raises: InvalidReply if `content` is no JSON object."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidReply(f"{what} is not JSON ({len(content)} bytes)") from None
    if not isinstance(body, dict):
        raise InvalidReply(f"{what} is not a JSON object")
    return body


def _check_error(body: dict[str, object]) -> None:
    """Raises: what `failure_from_body` says if a 200 carries an error."""
    error = body.get("error") or (body if body.get("object") == "error" else None)
    if error:
        raise failure_from_body(None, {"error": error})


def _check_refusal(text: Text) -> None:
    if text.refusal:
        raise AnswerFiltered(f"the model refused: {text.refusal}")


def _check_text(text: str) -> None:
    """Raises: InvalidReply for half of a surrogate pair, which JSON can spell but no UTF-8 text can hold."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidReply("the reply's text is not valid Unicode")
