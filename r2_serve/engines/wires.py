"""What differs between hosted providers: address, headers, and the translation of requests and replies.

The engine writes each request as a body of chat completions and reads each reply as a chat completion or its
chunks, so a wire is three translations between these and what the provider speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from r2_serve import __version__
from r2_serve.config import HostedEngineConfig
from r2_serve.dialects.messages import events, replies, requests, writing
from r2_serve.dialects.responses import reading
from r2_serve.dialects.responses.writing import RequestWriter
from r2_serve.engines.apis import TRANSLATIONS
from r2_serve.engines.portable import knows_developer, write_for_openai, write_portable
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.types import Api, Json, Message, Sampling

ReadEvent = Callable[[Json], Iterable[Json] | None]
"""The chat chunks of one event of a stream; None for the event that ends it. An error has the key `error`."""


def same(body: Json) -> Json:
    return body


def as_it_is(body: Json, messages: Sequence[Message], sampling: Sampling) -> Json:
    return body


def one(event: Json) -> Iterable[Json]:
    return (event,)


@dataclass(frozen=True)
class ProviderWire:
    """How one provider is spoken to. The defaults are chat completions."""

    url: str
    headers: Mapping[str, str]
    write: Callable[[Json, Sequence[Message], Sampling], Json] = as_it_is
    """The provider's request that says a body of chat completions, its messages and its sampling.

    Raises: InvalidRequest for what it cannot say."""
    read: Callable[[Json], Json] = same
    """A whole reply as a chat completion; an error inside a 200 has the key `error`, as OpenAI's."""
    new_reader: Callable[[], ReadEvent] = lambda: one
    """Makes the reader of one stream, which may keep what it has seen."""
    headers_of: Callable[[Sampling], Mapping[str, str]] = lambda _: {}
    """The headers of one request beside `headers`."""
    count_url: str | None = None
    """Address at which the provider counts the tokens of a request; None if it does not."""
    write_count: Callable[[Json], Json] = same
    """The request there, of one to `url`."""
    relents: Callable[[Json, str], bool] = lambda sent, refusal: False
    """Whether the next request will leave out what the provider refused of the one sent, by its message."""


_HEADERS = {"Content-Type": "application/json", "User-Agent": f"r2-serve/{__version__}"}


def wire_of(config: HostedEngineConfig, key: str | None, api: Api = "chat") -> ProviderWire:
    """The wire of the provider that `config` names, for calls of `api`.

    Raises: ConfigError if a setting that the provider needs is missing; EngineRefused if it has no such API.
    """
    if config.kind == "anthropic":
        if api != "chat":
            raise EngineRefused.of("model", f"the provider of model {config.model!r} has no {api}")
        return _messages_wire(config, key)
    if config.kind == "openai-responses" and api == "chat":
        return _responses_wire(*_address(config, key, "responses"))
    told = TRANSLATIONS[api]
    url, headers = _address(config, key, told.path)
    if api != "chat":
        return ProviderWire(
            url, headers, lambda body, *_: told.write(body), told.read, lambda: told.read_event
        )
    knows = config.kind == "azure" or knows_developer(config.base_url)
    return ProviderWire(url, headers, write_for_openai if knows else write_portable)


def _address(config: HostedEngineConfig, key: str | None, path: str) -> tuple[str, Mapping[str, str]]:
    """The URL of OpenAI's `path` at the provider, and the headers of a request. Raises: ConfigError."""
    base = config.base_url.rstrip("/")
    if config.kind != "azure":
        return f"{base}/{path}", _HEADERS | ({"Authorization": f"Bearer {key}"} if key else {})
    if key is None or config.api_version is None:
        raise ConfigError(f"model {config.model!r}: Azure needs api_key_env and api_version")
    deployment, version = quote(config.model, safe=""), quote(config.api_version)
    url = f"{base}/openai/deployments/{deployment}/{path}?api-version={version}"
    return url, _HEADERS | {"api-key": key}


def _responses_wire(url: str, headers: Mapping[str, str]) -> ProviderWire:
    writer = RequestWriter()
    readers = (reading.completion_of, reading.EventsRead)
    return ProviderWire(url, headers, writer, *readers, relents=writer.relents)


def _messages_wire(config: HostedEngineConfig, key: str | None) -> ProviderWire:
    base = config.base_url.rstrip("/")
    own = {"anthropic-version": config.api_version or requests.VERSION} | ({"x-api-key": key} if key else {})
    return ProviderWire(
        f"{base}/messages",
        _HEADERS | own,
        writing.write_request,
        replies.completion_of,
        events.EventsRead,
        _own_headers,
        f"{base}/messages/count_tokens",
        writing.count_request,
    )


def _own_headers(sampling: Sampling) -> Mapping[str, str]:
    """The version that the client speaks, and the features that it opens beyond it."""
    headers = (sampling.messages_api or {}).get(requests.HEADERS)
    return headers if isinstance(headers, dict) else {}
