"""The recorded engine gives the replies of a book, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from r2_serve.config import EngineConfig
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.lab.outcomes.book import Outcome, write_book
from r2_serve.types import Engine, EngineCall, Message


@pytest.fixture(params=["book.jsonl", "book.jsonl.gz"])
def book(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / str(request.param)
    records = [
        Outcome(task="a", model="small", prompt="1 +\n1?", reply="It is 2.", tokens_in=5, tokens_out=3),
        Outcome(task="a", model="large", prompt="1 +\n1?", reply="2"),
    ]
    write_book(path, records)
    return path


def engine_of(book: Path, model: str) -> Engine:
    fields = {"kind": "recorded", "book": str(book), "model": model}
    config: EngineConfig = TypeAdapter(EngineConfig).validate_python(fields)
    return make_engine(config)


def asking(prompt: str) -> EngineCall:
    return EngineCall(messages=(Message(role="user", content=prompt),), timeout_s=5.0)


async def test_recorded_prompt_gets_its_reply_with_its_tokens(book: Path) -> None:
    reply = await engine_of(book, "small").generate(asking("1 + 1? "))
    assert reply.text == "It is 2."
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 3)


async def test_recorded_reply_is_streamed_whole(book: Path) -> None:
    pieces = [delta.text async for delta in engine_of(book, "small").stream(asking("1 + 1?"))]
    assert "".join(pieces) == "It is 2."


async def test_prompt_that_is_not_recorded_is_refused(book: Path) -> None:
    with pytest.raises(EngineRefused, match="no reply of 'small' to this prompt"):
        await engine_of(book, "small").generate(asking("2 + 2?"))


def test_model_that_the_book_lacks_is_named(book: Path) -> None:
    with pytest.raises(ConfigError, match="no reply of model 'medium'"):
        engine_of(book, "medium")
