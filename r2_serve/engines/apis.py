"""The three APIs of a model in OpenAI's words: where each is, and how it is told in chat completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from r2_serve.dialects import completions, embeddings
from r2_serve.types import Api, Json


def _same(body: Json) -> Json:
    return body


def _one(event: Json) -> Iterable[Json]:
    return (event,)


@dataclass(frozen=True)
class Translation:
    """Translates between chat completions, in which the engines read and write, and another API."""

    path: str = "chat/completions"
    """The API's path below the base URL, at OpenAI and compatible providers."""
    write: Callable[[Json], Json] = _same
    """The request that says a body of chat completions."""
    read: Callable[[Json], Json] = _same
    """A whole reply as a chat completion; an error inside a 200 has the key `error`."""
    read_event: Callable[[Json], Iterable[Json]] = _one
    """An event of a stream as chat chunks."""


TRANSLATIONS: dict[Api, Translation] = {
    "chat": Translation(),
    "completions": Translation(
        "completions", completions.write_request, completions.completion_of, completions.chunk_of
    ),
    "embeddings": Translation("embeddings", embeddings.write_request, embeddings.completion_of),
}
