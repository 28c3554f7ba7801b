"""JSON Lines files: what is written is read back, whole lines only, by one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2_serve.lab.jsonl import JsonlLog, read_jsonl, write_jsonl
from r2_serve.lab.runs import RunError
from r2_serve.types import Message


def said(*texts: str) -> list[Message]:
    return [Message(role="user", content=text) for text in texts]


def test_texts_with_line_separators_are_written_and_read_back(tmp_path: Path) -> None:
    records = said("a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1ee\r\nf", "\ufeffg", "\x00")
    with JsonlLog(tmp_path / "log.jsonl") as log:
        for record in records:
            log.append(record)
    write_jsonl(tmp_path / "whole.jsonl", records)
    assert list(read_jsonl(tmp_path / "log.jsonl", Message)) == records
    assert list(read_jsonl(tmp_path / "whole.jsonl", Message)) == records


def test_half_of_a_surrogate_pair_is_replaced_and_no_record_is_lost(tmp_path: Path) -> None:
    with JsonlLog(tmp_path / "log.jsonl") as log:
        for record in said("a\ud83db", "c"):
            log.append(record)
    assert list(read_jsonl(tmp_path / "log.jsonl", Message)) == said("a?b", "c")


def test_incomplete_last_line_is_skipped_and_the_next_writer_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, second = said("first", "second")
    path.write_text(f'{first.model_dump_json()}\n{{"role": "us')
    assert list(read_jsonl(path, Message)) == [first]
    with JsonlLog(path) as log:
        log.append(second)
    assert list(read_jsonl(path, Message)) == [first, second]


def test_short_write_is_undone_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log.jsonl", os.write
    first, second = said("first", "second")
    with JsonlLog(path) as log:
        log.append(first)
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
        with pytest.raises(RunError, match=r"only 10 of .* free some space"):
            log.append(second)
        monkeypatch.undo()
        log.append(second)
    assert list(read_jsonl(path, Message)) == [first, second]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"role": "user", "content": ""}\n{"role": "user"}\n')
    with pytest.raises(RunError, match=r"log.jsonl:2 is not a Message: Field required"):
        list(read_jsonl(path, Message))


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        JsonlLog(tmp_path / "log.jsonl"),
        pytest.raises(RunError, match="being written by another process"),
        JsonlLog(tmp_path / "log.jsonl"),
    ):
        pass


def test_replaced_file_stays_as_it_was_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    write_jsonl(path, said("old"))

    def broken() -> Iterator[Message]:
        yield from said("new")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_jsonl(path, broken())
    assert list(read_jsonl(path, Message)) == said("old")
    assert list(tmp_path.iterdir()) == [path]
