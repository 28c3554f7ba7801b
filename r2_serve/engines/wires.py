"""What differs between hosted providers: address, headers, and the translation of requests and replies.

The engine writes each request as a body of chat completions and reads each reply as a chat completion or its
chunks, so a wire is three translations between these and what the provider speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from r2_serve import __version__
from r2_serve.config import HostedEngineConfig
from r2_serve.errors import ConfigError
from r2_serve.types import Json

ReadEvent = Callable[[Json], Iterable[Json] | None]
"""The chat chunks of one event of a stream; None for the event that ends it. An error has the key `error`."""


def same(body: Json) -> Json:
    return body


def one(event: Json) -> Iterable[Json]:
    return (event,)


@dataclass(frozen=True)
class ProviderWire:
    """How one provider is spoken to. The defaults are chat completions."""

    url: str
    headers: Mapping[str, str]
    write: Callable[[Json], Json] = same
    """A body of chat completions as the provider's request. Raises: EngineRefused for what it cannot say."""
    read: Callable[[Json], Json] = same
    """A whole reply as a chat completion; an error inside a 200 has the key `error`, as OpenAI's."""
    new_reader: Callable[[], ReadEvent] = lambda: one
    """Makes the reader of one stream, which may keep what it has seen."""


def wire_of(config: HostedEngineConfig, key: str | None) -> ProviderWire:
    """The wire of the provider that `config` names.

    Raises: ConfigError if a setting that the provider needs is missing.
    """
    base = config.base_url.rstrip("/")
    headers = {"Content-Type": "application/json", "User-Agent": f"r2-serve/{__version__}"}
    if config.kind == "openai":
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return ProviderWire(f"{base}/chat/completions", headers | authorization)
    if key is None or config.api_version is None:
        raise ConfigError(f"model {config.model!r}: Azure needs api_key_env and api_version")
    deployment, version = quote(config.model, safe=""), quote(config.api_version)
    path = f"openai/deployments/{deployment}/chat/completions?api-version={version}"
    return ProviderWire(f"{base}/{path}", headers | {"api-key": key})
