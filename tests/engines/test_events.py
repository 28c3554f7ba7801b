"""The reader of event streams against a second implementation of the WHATWG rules, cut at every place."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.engines import events
from r2_serve.engines.events import EventReader, EventStreamError


def read(chunks: list[bytes]) -> list[str]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def reference(body: bytes) -> list[str]:
    """The standard's own steps, one character at a time, over the whole text."""
    text = body.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events, data, line = [], "", ""
    for character in text:
        if character != "\n":
            line += character
        elif line:
            name, _, value = line.partition(":")
            if name == "data":
                data += (value[1:] if value[:1] == " " else value) + "\n"
            line = ""
        elif data:
            events.append(data[:-1])
            data = ""
    return events


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n', ['{"a": 1}']),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", ["a", "b", "c"]),
        (b"data: a\r\ndata: b\rdata: c\n\r", ["a\nb\nc"]),
        (b"data:{}\n\n", ["{}"]),
        (b"data:  two blanks\n\n", [" two blanks"]),
        (b": keep-alive\n\nevent: x\nid: 7\nretry: 1\n\ndata\n\n", [""]),
        (b"data: whole\n\ndata: cut off\n", ["whole"]),
        ("data: \u2028\u2029\u0085\x0b\n\n".encode(), ["\u2028\u2029\u0085\x0b"]),
        (b"data: \xef\xbb\xbf\n\n", ["\ufeff"]),
    ],
)
def test_events_are_read_by_the_standard_however_they_are_cut(body: bytes, events: list[str]) -> None:
    assert read([body]) == read([bytes([byte]) for byte in body]) == reference(body) == events


FRAGMENTS = ["data", ":", " ", "\n", "\r", "\r\n", "\n\n", "data: x", "\ufeff", "é", "\u2028", "id: 1", ": c"]


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.lists(st.integers(0, 60), max_size=6)
)
def test_reader_agrees_with_the_standard_for_any_stream_and_any_cuts(text: str, cuts: list[int]) -> None:
    body = text.encode()
    places = [0, *sorted(cuts), len(body)]
    assert read([body[a:b] for a, b in pairwise(places)]) == reference(body)


def test_stream_that_is_not_utf_8_is_an_error() -> None:
    with pytest.raises(EventStreamError, match="not UTF-8"):
        read([b"data: \xff\n\n"])


@pytest.mark.parametrize("piece", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_endless_line_or_event_is_an_error(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_CHARS", 10_000)
    assert read([b"data: " + b"x" * 9_000 + b"\n\n"] * 3) == ["x" * 9_000] * 3
    with pytest.raises(EventStreamError, match="longer than 10000 characters"):
        read([piece] * 20)
