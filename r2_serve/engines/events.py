"""The one reader of server-sent event streams, for hosted engines and for clients of our own endpoint.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

import codecs
import re

DONE = "[DONE]"
"""Data of the event with which OpenAI's dialect ends a whole reply."""
_LINE_END = re.compile(r"\r\n|\n|\r")


class EventReader:
    """Takes the bytes of a stream as they come and gives the data of each event that is complete.

    Lines end with LF, CR or both. A byte order mark, comments and fields other than `data` are passed over; several
    `data` lines of an event are joined by LF. An event that the stream's end cuts off is never given.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line_start: list[str] = []
        self._is_after_cr = False
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that `chunk` completes. Raises: UnicodeDecodeError where the stream is not UTF-8."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
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
        data, self._data = self._data, []
        return "\n".join(data) if data else None
