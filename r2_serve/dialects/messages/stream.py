"""The typed events of a streamed reply of Messages, made from an answer's pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

from r2_serve.dialects.messages.errors import error_body
from r2_serve.dialects.messages.replies import counts_of, message_of, native_of, stop_of
from r2_serve.dialects.messages.thoughts import keys_of, signature_of, text_of
from r2_serve.dialects.sealing import join_thoughts
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.dialects.wire import ErrorReply, encode, event
from r2_serve.errors import InvalidReply
from r2_serve.types import Answer, Delta, Json, Usage


def typed(value: Json) -> bytes:
    """One event, under the name that its type is."""
    return event(value, str(value["type"]))


@dataclass
class MessagesReply:
    """Writes one reply, whole or as events. `model` is the name that the client gave.

    The events of a provider that speaks Messages pass as they came; the last two wait for `end`, which adds
    `r2`. Of others, each kind of content opens a block, and closes the block before.
    """

    id: str
    model: str
    request_id: str
    _has_started: bool = False
    _last: Json | None = None
    """The provider's `message_delta`."""
    _num_blocks: int = 0
    _open: object = None
    """What the open block holds: `thinking`, `text` or the index of a tool call; None if none is open."""
    _thoughts: Json = field(default_factory=dict)
    """The thoughts of the open block, by their keys in chat completions."""
    _calls: set[object] = field(default_factory=set)
    _has_refused: bool = False
    _finished: Json = field(default_factory=dict)
    """The choice of a chat chunk that ended the reply."""

    def whole(self, answer: Answer, r2: Json) -> bytes:
        return encode({**message_of(answer, self.id, self.model), "r2": r2})

    def piece(self, piece: Delta) -> bytes:
        if piece.body is None:
            return self._text(piece.text) if piece.text else b""
        if (came := native_of(piece.body)) is not None:
            return self._as_it_came(came)
        first = next(iter(as_objects(piece.body["choices"])), {})
        is_first = not first.get("index")
        delta = first.get("delta")
        if is_first and first.get("finish_reason"):
            self._finished = first
        return self._said(delta) if is_first and isinstance(delta, dict) else b""

    def end(self, answer: Answer, rest: str, r2: Json) -> bytes:
        events = self.piece(Delta(text=rest)) if rest else b""
        if self._last is not None:
            usage = as_object(self._last.get("usage")) | counts_of(answer.usage)
            last = {**self._last, "usage": usage, "r2": r2}
            return events + typed(last) + typed({"type": "message_stop"})
        stop = stop_of({"refusal": self._has_refused}, answer.finish_reason, self._finished)
        last = {"type": "message_delta", "delta": stop, "usage": counts_of(answer.usage), "r2": r2}
        events += self._started() + self._closed()
        return events + typed(last) + typed({"type": "message_stop"})

    def failure(self, error: ErrorReply) -> bytes:
        return typed(error_body(error, self.request_id))

    def _as_it_came(self, came: Json) -> bytes:
        self._has_started = True
        if came["type"] == "message_delta":
            self._last = came
            return b""
        if came["type"] == "message_start" and isinstance(message := came.get("message"), dict):
            came = {**came, "message": {**message, "id": self.id, "model": self.model}}
        return typed(came)

    def _said(self, delta: Json) -> bytes:
        events = b""
        if keys := keys_of(delta):
            events += self._thought(keys)
        for text in (delta.get("content"), delta.get("refusal")):
            if text:
                events += self._text(text)
        self._has_refused |= bool(delta.get("refusal"))
        for call in as_objects(delta.get("tool_calls")):
            events += self._call(call)
        return events

    def _text(self, text: object) -> bytes:
        return self._grown("text", _TEXT, {"type": "text_delta", "text": text})

    def _thought(self, keys: Json) -> bytes:
        text = text_of(keys)
        grown: Json | None = {"type": "thinking_delta", "thinking": text} if text else None
        events = self._grown("thinking", _THOUGHT, grown)
        join_thoughts(self._thoughts, keys)
        return events

    def _call(self, call: Json) -> bytes:
        index, function = call.get("index"), as_object(call.get("function"))
        if index in self._calls and index != self._open:
            raise InvalidReply("the provider went back to a tool call after the next one had begun")
        self._calls.add(index)
        start: Json = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
        arguments = function.get("arguments")
        delta: Json = {"type": "input_json_delta", "partial_json": arguments}
        return self._grown(index, start, delta if arguments else None)

    def _grown(self, what: object, start: Json, delta: Json | None) -> bytes:
        """The events of a piece, after those that open its block if it is not open."""
        events = b""
        if what != self._open:
            events = self._started() + self._closed()
            opened = {"type": "content_block_start", "index": self._num_blocks, "content_block": start}
            events += typed(opened)
            self._open, self._num_blocks = what, self._num_blocks + 1
        grown = {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}
        return events + typed(grown) if delta is not None else events

    def _started(self) -> bytes:
        if self._has_started:
            return b""
        self._has_started = True
        stop = {"stop_reason": None, "stop_sequence": None}
        message = {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": []}
        counts = {"usage": counts_of(Usage())}
        return typed({"type": "message_start", "message": message | stop | counts})

    def _closed(self) -> bytes:
        """The end of the open block. That of thoughts is signed with what the text does not say."""
        was_open, self._open = self._open, None
        place: Json = {"index": self._num_blocks - 1}
        signature, self._thoughts = signature_of(self._thoughts), {}
        signed: Json = {"delta": {"type": "signature_delta", "signature": signature}}
        events = typed({"type": "content_block_delta", **place, **signed}) if signature else b""
        return events + (typed({"type": "content_block_stop", **place}) if was_open is not None else b"")


_TEXT: Json = {"type": "text", "text": ""}
_THOUGHT: Json = {"type": "thinking", "thinking": "", "signature": ""}
