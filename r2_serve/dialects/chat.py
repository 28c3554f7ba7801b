"""Chat completions: the dialect that the core speaks itself, so that requests pass as they came.

Source: https://platform.openai.com/docs/api-reference/chat. Replies have one key beyond OpenAI's own, `r2`;
money in it is a decimal string.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from r2_serve.dialects.wire import NATIVE, Arrival, ErrorReply, Reply, encode, event
from r2_serve.types import Answer, Api, Delta, Json, Query

DONE = b"data: [DONE]\n\n"


class ChatDialect:
    """The dialect of POST /v1/chat/completions, and the base of those that differ in their bodies alone."""

    heartbeat = b": keep-alive\n\n"

    def read(self, body: bytes, arrival: Arrival) -> ChatBody:
        return ChatBody(body, arrival)

    def error_body(self, error: ErrorReply, request_id: str) -> Json:
        fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
        return {"error": fields}


CHAT = ChatDialect()


@dataclass(frozen=True)
class ChatBody:
    """A request, which needs no translation."""

    chat: bytes
    arrival: Arrival

    api: ClassVar[Api] = "chat"
    source: ClassVar[str | None] = None
    """The client's field from which the messages are made; None if they are the client's own."""

    def refined(self, query: Query) -> Query:
        if self.api == "chat":
            return query
        return query.model_copy(update={"sampling": query.sampling.model_copy(update={"api": self.api})})

    def param(self, name: str) -> str:
        return self.source if self.source and name.startswith("messages") else name

    def reply(self, model: str, *, wants_usage_chunk: bool) -> Reply:
        id = f"chatcmpl-{self.arrival.reply_id}"
        return ChatReply(id, self.arrival.created, model, wants_usage_chunk)


@dataclass
class ChatReply:
    """Writes a completion or its chunks. `model` is the name that the client gave."""

    id: str
    created: int
    model: str
    wants_usage_chunk: bool = False
    _has_begun: bool = False
    _last: Json | None = field(default=None)
    """The provider's chunk that finishes a choice, held back to carry `r2` if no other follows."""

    kind: ClassVar[str] = "chat.completion"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    def whole(self, answer: Answer, r2: Json) -> bytes:
        usage, head = usage_of(answer), self._head(self.kind)
        if answer.body is not None:
            return encode({**without_native(answer.body), **head, "usage": usage, "r2": r2})
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return encode({**head, "choices": [choice], "usage": usage, "r2": r2})

    def piece(self, piece: Delta) -> bytes:
        if piece.body is not None:
            return self._as_it_came(piece.body)
        return self._text(piece.text) if piece.text else b""

    def end(self, answer: Answer, rest: str, r2: Json) -> bytes:
        """The finish reason, the usage if asked for, and the end; `r2` is in the last chunk."""
        events = self._text(rest) if rest or not self._has_begun else b""
        last = self._last or _piece({}, answer.finish_reason)
        if not self.wants_usage_chunk:
            return events + self._chunk(last, r2) + DONE
        usage = {"choices": [], "usage": usage_of(answer), "r2": r2}
        return events + self._chunk(last) + event({**self._head(self.chunk_kind), **usage}) + DONE

    def note(self, name: str, r2: Json) -> bytes:
        """A named event between the pieces: a chunk without choices, as OpenAI's client reads every event."""
        chunk: Json = {**self._head(self.chunk_kind), "choices": [], "r2": r2}
        return event(chunk, name)

    def failure(self, error: ErrorReply) -> bytes:
        return event(CHAT.error_body(error, ""))

    def _text(self, text: str) -> bytes:
        role = b"" if self._has_begun else self._chunk(_piece(_ROLE))
        self._has_begun = True
        return role + self._chunk(_piece({"content": text})) if text else role

    def _as_it_came(self, chunk: Json) -> bytes:
        self._has_begun = True
        if not chunk["choices"]:
            return b""
        events = b"" if self._last is None else self._chunk(self._last)
        self._last = chunk if has_finish_reason(chunk) else None
        return events if self._last is not None else events + self._chunk(chunk)

    def _chunk(self, chunk: Json, r2: Json | None = None) -> bytes:
        """`chunk`, ours or a provider's, under our id and the client's name of the model."""
        usage: Json = {"usage": None} if self.wants_usage_chunk else {}
        chunk = without_native(chunk)
        return event({**self._head(self.chunk_kind), **chunk, **usage, **({"r2": r2} if r2 else {})})

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


_ROLE: Json = {"role": "assistant", "content": "", "refusal": None}


def _piece(delta: Json, finish_reason: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"choices": [choice]}


def without_native(body: Json) -> Json:
    """A chat completion or chunk without what its provider said in another dialect."""
    return {key: value for key, value in body.items() if key not in NATIVE}


def has_finish_reason(chunk: Json) -> bool:
    """Whether a chunk finishes one of its choices."""
    choices = chunk["choices"]
    return isinstance(choices, list) and any(choice["finish_reason"] for choice in choices)


def usage_of(answer: Answer) -> Json:
    """The usage of all calls; that of one call alone has the provider's details, which R2 does not read."""
    usage, reported = answer.usage, (answer.body or {}).get("usage")
    counts: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if isinstance(reported, dict) and len(answer.trace.calls) == 1:
        return {**reported, **counts}
    if usage.cached_read_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_read_tokens}
    if usage.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts
