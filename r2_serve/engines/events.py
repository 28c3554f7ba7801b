"""The one reader of server-sent event streams, for hosted engines and for clients of our own endpoint.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

import codecs
import re

DONE = "[DONE]"
"""Data of the event with which OpenAI's dialect ends a whole reply."""
IGNORED_EVENTS = frozenset({"", "null"})
"""Data of events that some servers send between the chunks of a reply."""
MAX_EVENT_CHARS = 16_000_000
"""Longer events are refused, so that an endless line does not fill the memory."""
_LINE_END = re.compile(r"\r\n|\n|\r")


class EventStreamError(ValueError):
    """The bytes are no event stream that can be read."""


class EventReader:
    """Takes the bytes of a stream as they come and gives the data of each event that is complete.

    Lines end with LF, CR or both. A byte order mark, comments and fields other than `data` are ignored.
    Several `data` lines of an event are joined by LF. An event that the stream's end cuts off is never given.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line_start: list[str] = []
        self._is_after_cr = False
        self._data: list[str] = []
        self._num_held_chars = 0
        """Characters of the unfinished event and line."""

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that `chunk` completes.

        Raises: EventStreamError if the stream is not UTF-8 or an event is longer than `MAX_EVENT_CHARS`.
        """
        try:
            text = self._decoder.decode(chunk)
        except UnicodeDecodeError as e:
            raise EventStreamError("the stream is not UTF-8") from e
        if not text:
            return []
        self._num_held_chars += len(text)
        if self._num_held_chars > MAX_EVENT_CHARS:
            raise EventStreamError(f"an event is longer than {MAX_EVENT_CHARS} characters")
        if self._is_after_cr:
            text = text.removeprefix("\n")
        self._is_after_cr = text.endswith("\r")
        first, *others = _LINE_END.split(text)
        self._line_start.append(first)
        if not others:
            return []
        *whole, rest = others
        lines = ["".join(self._line_start), *whole]
        self._line_start = [rest]
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> str | None:
        """Takes one line; an empty one ends the event."""
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            return None
        data, self._data, self._num_held_chars = self._data, [], 0
        return "\n".join(data) if data else None
