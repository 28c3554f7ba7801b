"""A model behind a provider's API: OpenAI, Azure OpenAI, DeepSeek, Qwen, a vLLM server.

A call is one POST of aiohttp's client: no redirects, no retries (the router has its own), and one timeout
that bounds the whole call. What differs between providers is in `wires`. Replies are read as bytes and
checked in `hosted_replies`. The openai client is not used: it takes a cut stream for a whole one and an error
object for a completion, and costs five times the CPU (docs/performance.md). The key stays in the request's
header: it is removed from the provider's texts before they go into an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from r2_serve.config import HostedEngineConfig
from r2_serve.engines.chat_body import chat_body
from r2_serve.engines.concessions import Concession, conceded, concession_for
from r2_serve.engines.hosted_replies import StreamReader, parse_completion, parse_count
from r2_serve.engines.provider_errors import failure_from_status
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.engines.wires import ProviderWire, wire_of
from r2_serve.errors import (
    ConfigError,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    InvalidRequest,
    NotStarted,
)
from r2_serve.types import Api, Completion, Delta, EngineCall, Json, Usage, likely_tokens

MAX_BYTES: dict[Api, int] = {"chat": 16_000_000, "completions": 16_000_000, "embeddings": 256_000_000}
"""Longest reply in bytes. 2,048 vectors of 3,072 numbers have about 130 MB."""
MAX_MESSAGE_CHARS = 1_000
"""Longest error message, most of which is the provider's own text. Faults of a schema take a few hundred."""
MAX_ERROR_BYTES = 64_000
"""How much is read of the body of an error status."""
MAX_CONNECTIONS, KEEP_ALIVE_S = 1000, 4.0
"""Idle connections close before the provider closes them: uvicorn servers such as vLLM's do so after 5 s."""
MAX_HEADER_BYTES = 128 * 1024
"""Longest line of a reply's head. Some gateways send more than aiohttp's default of 8,190 bytes."""
DRAIN_S = 0.1
USAGE_WAIT_S = 2.0
"""How long a failed stream is read on for its usage, which comes last."""
_IDENTITY = re.compile(r"\b(sk|gsk|xai|org|proj)-[\w*-]{4,}|\b\w{2,}\*{3,}\w*")
"""Masked keys and names of accounts, which providers repeat in the errors that they send."""
_log = logging.getLogger(__name__)


class HostedEngine:
    """An `Engine` over HTTP. If a reply reports no usage, it is estimated from its bytes, with one warning.

    `stall_s` is how long a stream may be silent after its first bytes. Only the call's timeout bounds the
    wait for these.
    """

    def __init__(self, config: HostedEngineConfig, *, stall_s: float = 30.0) -> None:
        self._config = config
        self._stall_s = stall_s
        self._key = _key(config)
        self._wires: dict[Api, ProviderWire] = {"chat": wire_of(config, self._key)}
        self._proxy = _proxy(self._wires["chat"].url)
        self._session: aiohttp.ClientSession | None = None
        self._life: AsyncGenerator[aiohttp.ClientSession, None] | None = None
        self._has_warned_of_usage = False
        self._given_up: frozenset[Concession] = frozenset()
        """What the provider refused and answered without."""

    def __repr__(self) -> str:
        return f"HostedEngine({self._config.model!r} at {self._config.base_url!r})"

    async def generate(self, call: EngineCall) -> Completion:
        """Raises: EngineUnavailable, EngineRefused, InvalidReply."""
        deadline = Deadline(call.timeout_s)
        with self._redacted_errors():
            async with bounded(deadline.at), self._response(call, is_streamed=False) as response:
                content = bytearray()
                while chunk := await response.content.readany():
                    content += chunk
                    _check_size(len(content), MAX_BYTES[call.sampling.api])
            parts = parse_completion(bytes(content), self._wire(call).read, is_verbatim=call.is_verbatim)
        num_bytes = sum(len(text.encode()) for text in (parts.text, *parts.others))
        estimate = partial(self._estimated, call, num_bytes)
        return Completion(
            text=parts.text,
            others=parts.others,
            usage=parts.tokens.whole() or parts.tokens.completed(estimate()),
            is_usage_estimated=parts.tokens.whole() is None,
            finish_reason=parts.finish_reason,
            logprobs=parts.logprobs,
            body=parts.body if call.is_verbatim else None,
        )

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Raises: as `generate`; InvalidReply also if the stream ends before its finish reason."""
        deadline = Deadline(call.timeout_s)
        reader = StreamReader(self._wire(call).new_reader(), is_verbatim=call.is_verbatim)
        num_bytes, usage = 0, None
        async with aclosing(self._chunks(call, deadline)) as chunks:
            async for chunk in chunks:
                pieces = reader.feed(chunk)
                while (piece := self._next_piece(pieces)) is not None:
                    num_bytes += piece.num_bytes
                    yield piece
                if reader.has_failed and not reader.is_done:
                    await _read_on(reader, chunks)
                if reader.usage != usage:
                    usage = reader.usage
                    yield Delta(usage=usage)
                if reader.is_done:
                    await _drain(chunks)
                if reader.is_done or reader.has_failed:
                    break
        with self._redacted_errors():
            finish_reason = reader.finish()
        usage = reader.usage or reader.tokens.completed(self._estimated(call, num_bytes))
        yield Delta(
            finish_reason=finish_reason,
            usage=usage,
            is_usage_estimated=reader.usage is None,
            body={"usage": reader.usage_body} if call.is_verbatim else None,
        )

    async def count_tokens(self, call: EngineCall) -> int | None:
        """The tokens of a call's prompt as the provider counts them; None if it does not.

        Raises: EngineError.
        """
        wire, session = self._wire(call), await self._client()
        if wire.count_url is None:
            return None
        body = wire.write_count(self._body(conceded(call, self._given_up), is_streamed=False))
        headers = _headers(wire, call)
        opening = session.post(
            wire.count_url,
            data=json.dumps(body).encode(),
            headers=headers,
            proxy=self._proxy,
            allow_redirects=False,
        )
        with self._redacted_errors():
            async with bounded(Deadline(call.timeout_s).at), opening as response:
                if response.status != HTTPStatus.OK:
                    raise await _failure(response)
                return parse_count(await _beginning(response.content, MAX_ERROR_BYTES))

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._life is not None:
            await self._life.aclose()

    def _wire(self, call: EngineCall) -> ProviderWire:
        """Raises: EngineRefused if the provider has no such API."""
        api = call.sampling.api
        if api not in self._wires:
            self._wires[api] = wire_of(self._config, self._key, api)
        return self._wires[api]

    def _next_piece(self, pieces: Iterator[Delta]) -> Delta | None:
        with self._redacted_errors():
            return next(pieces, None)

    async def _chunks(self, call: EngineCall, deadline: Deadline) -> AsyncGenerator[bytes, None]:
        """The body of a stream as it arrives. Each wait is bounded; the consumer's time is not counted."""
        opening = self._response(call, is_streamed=True)
        with self._redacted_errors():
            async with bounded(deadline.at):
                response = await opening.__aenter__()
        try:
            num_bytes = 0
            limit = deadline.at
            while True:
                with self._redacted_errors():
                    async with bounded(limit):
                        chunk = await response.content.readany()
                if not chunk:
                    return
                num_bytes += len(chunk)
                _check_size(num_bytes, MAX_BYTES[call.sampling.api])
                with deadline.paused():
                    yield chunk
                stalled_at = asyncio.get_running_loop().time() + self._stall_s
                limit = stalled_at if deadline.at is None else min(stalled_at, deadline.at)
        finally:
            await opening.__aexit__(None, None, None)

    @asynccontextmanager
    async def _response(
        self, call: EngineCall, *, is_streamed: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The opened reply. Asks once more without what the provider refuses, if the router can give it up.

        Raises: EngineError for any status but 200.
        """
        wire, session = self._wire(call), await self._client()
        given_up = self._given_up
        while True:
            sent = self._body(conceded(call, given_up), is_streamed=is_streamed)
            async with session.post(
                wire.url,
                data=json.dumps(sent).encode(),
                headers=_headers(wire, call),
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                if response.status == HTTPStatus.OK:
                    self._given_up = given_up
                    yield response
                    return
                failure = await _failure(response)
            if wire.relents(sent, failure.message):
                continue
            concession = concession_for(response.status, failure, call)
            if concession is None or concession in given_up:
                raise failure
            given_up |= {concession}

    async def _client(self) -> aiohttp.ClientSession:
        """The session of the running event loop, to which its connections belong; made on the first call."""
        if self._session is None or self._session.closed:
            self._life = _session_for_the_loop()
            self._session = await anext(self._life)
        return self._session

    def _body(self, call: EngineCall, *, is_streamed: bool) -> Json:
        if call.adapter is not None:
            raise EngineRefused(
                f"adapter {call.adapter!r}: a hosted model takes no adapter; "
                "name the adapted model as a model of its own"
            )
        body = chat_body(
            call,
            self._config.model,
            is_streamed=is_streamed,
            max_tokens_field=self._config.max_tokens_field,
        )
        try:
            written = self._wire(call).write(body, call.messages, call.sampling)
        except InvalidRequest as e:
            refused = EngineRefused.of(e.param, e.message)
            refused.code = e.code or refused.code
            raise refused from None
        return written | self._config.extra_body

    def _estimated(self, call: EngineCall, num_bytes: int) -> Usage:
        if not self._has_warned_of_usage:
            self._has_warned_of_usage = True
            _log.warning("%r reports no usage: tokens are estimated from the length of the texts", self)
        prompt_bytes = sum(len(m.text.encode()) for m in call.messages)
        if call.sampling.format_sent is not None:
            prompt_bytes += len(json.dumps(call.sampling.format_sent))
        return Usage(prompt_tokens=likely_tokens(prompt_bytes), completion_tokens=likely_tokens(num_bytes))

    @contextmanager
    def _redacted_errors(self) -> Iterator[None]:
        """Raises: any failure inside as an EngineError without the key or a cause that might hold it."""
        failure: EngineError
        try:
            yield
            return
        except EngineError as e:
            failure = e
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as e:
            failure = NotStarted(f"cannot reach the provider: {type(e).__name__}")
        except aiohttp.ClientResponseError as e:
            failure = InvalidReply(f"the provider's reply cannot be read: {type(e).__name__}")
        except aiohttp.ClientError as e:
            failure = EngineUnavailable(f"the connection to the provider broke: {type(e).__name__}")
        raise self._redacted(failure) from None

    def _redacted(self, error: EngineError) -> EngineError:
        """The error in valid Unicode without the key; cut short after that, so that no half key remains."""

        def clean(text: str) -> str:
            text = text.encode(errors="replace").decode()
            return _IDENTITY.sub("[hidden]", text.replace(self._key, "[key]") if self._key else text)

        redacted = error.reworded(clean(error.message)[:MAX_MESSAGE_CHARS])
        redacted.kind = clean(error.kind)
        redacted.code, redacted.param = (text and clean(text) for text in (error.code, error.param))
        return redacted


async def _session_for_the_loop() -> AsyncGenerator[aiohttp.ClientSession, None]:
    """A session that ends at the latest with the event loop, which closes its async generators."""
    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    ) as session:
        yield session


async def _read_on(reader: StreamReader, chunks: AsyncGenerator[bytes, None]) -> None:
    """Reads the rest of a failed reply for its usage."""
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(USAGE_WAIT_S):
            async for chunk in chunks:
                for _ in reader.feed(chunk):
                    pass
                if reader.is_done:
                    break


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Reads to the end of the body: only then the connection can be used again."""
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in chunks:
                pass


async def _failure(response: aiohttp.ClientResponse) -> EngineError:
    if response.status < HTTPStatus.MULTIPLE_CHOICES:
        return InvalidReply(f"the provider answered with status {response.status}")
    content = await _beginning(response.content, MAX_ERROR_BYTES)
    return failure_from_status(response.status, response.headers, content)


async def _beginning(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    read = bytearray()
    while len(read) < max_bytes and (chunk := await content.readany()):
        read += chunk
    return bytes(read)


def _check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise InvalidReply(f"the reply is longer than {limit} bytes")


def _headers(wire: ProviderWire, call: EngineCall) -> Mapping[str, str]:
    traced = {"traceparent": call.trace_parent} if call.trace_parent else {}
    return {**wire.headers, **wire.headers_of(call.sampling), **traced}


def _key(config: HostedEngineConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {config.api_key_env} is not set: "
            f"it must hold the key for model {config.model!r}"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"environment variable {config.api_key_env} holds characters that no HTTP header can carry"
        )
    return key


def _proxy(url: str) -> str | None:
    """The proxy by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. aiohttp would look at each request."""
    target, proxies = urlsplit(url), getproxies()
    return None if proxy_bypass(target.netloc) else proxies.get(target.scheme, proxies.get("all"))
