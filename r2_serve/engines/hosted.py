"""A model behind an OpenAI-compatible API: OpenAI, Azure OpenAI, DeepSeek, Qwen, a vLLM server.

The openai client makes the requests and nothing more: no retries (the router has its own), no redirects, no timeout but
ours, which bounds the whole call. Replies are read as bytes and validated here (`hosted_replies`), since the client
takes a truncated stream for a complete one and an error object for a completion. The key never leaves the
request's header: texts from the provider are redacted before they go into an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any

import openai

from r2_serve.config import HostedEngineConfig
from r2_serve.engines.cancellation import cancelled_gently
from r2_serve.engines.hosted_replies import StreamReader, failure_from_status, parse_completion
from r2_serve.engines.timing import bounded, deadline_after
from r2_serve.errors import ConfigError, EngineError, EngineRefused, EngineUnavailable, InvalidReply
from r2_serve.types import Completion, Delta, Message, Sampling, Usage

MAX_REPLY_BYTES = 16_000_000
MAX_MESSAGE_CHARS = 300
"""Of an error, most of which is the provider's own text."""
DRAIN_S = 0.1
_log = logging.getLogger(__name__)


class HostedEngine:
    """An `Engine` over HTTP. Where a reply reports no usage it is estimated, UTF-8 bytes / 4 rounded up, with one warning.

    `stall_s` is how long a stream may be silent once it has begun; the wait for its beginning is bounded by the call's
    timeout alone.
    """

    def __init__(self, config: HostedEngineConfig, *, stall_s: float = 30.0) -> None:
        self._config = config
        self._stall_s = stall_s
        self._key = _key(config)
        self._client = _client(config, self._key)
        self._has_warned_of_usage = False

    def __repr__(self) -> str:
        return f"HostedEngine({self._config.model!r} at {self._config.base_url!r})"

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> Completion:
        """Raises: EngineUnavailable, EngineRefused, InvalidReply."""
        deadline = deadline_after(timeout_s)
        body = self._body(messages, sampling, adapter, is_streamed=False)
        with self._redacted_errors():
            async with bounded(deadline):
                content = await cancelled_gently(self._content(body))
            parts = parse_completion(content)
        return Completion(
            text=parts.text,
            usage=parts.usage or self._estimated(messages, parts.text),
            finish_reason=parts.finish_reason,
            logprobs=parts.logprobs,
        )

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The same, as it comes. A stream that ends before its finish reason is an InvalidReply, not a short answer."""
        deadline = deadline_after(timeout_s)
        body = self._body(messages, sampling, adapter, is_streamed=True)
        reader = StreamReader()
        text = ""
        async with aclosing(self._chunks(body, deadline)) as chunks:
            async for chunk in chunks:
                pieces = reader.feed(chunk)
                while (piece := self._next_piece(pieces)) is not None:
                    text += piece
                    yield Delta(text=piece)
                if reader.is_done:
                    await _drain(chunks)
                    break
        with self._redacted_errors():
            finish_reason = reader.finish()
        yield Delta(finish_reason=finish_reason, usage=reader.usage or self._estimated(messages, text))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _next_piece(self, pieces: Iterator[str]) -> str | None:
        with self._redacted_errors():
            return next(pieces, None)

    async def _content(self, body: dict[str, Any]) -> bytes:
        """The body of a whole reply."""
        async with self._response(body) as response:
            content = bytearray()
            async for chunk in response.iter_bytes():
                content += chunk
                _check_size(len(content))
        return bytes(content)

    async def _chunks(self, body: dict[str, Any], deadline: float | None) -> AsyncGenerator[bytes, None]:
        """The body of a stream as it arrives. Each wait is bounded, never the consumer's time."""
        opening = self._response(body)
        try:
            with self._redacted_errors():
                async with bounded(deadline):
                    response = await cancelled_gently(opening.__aenter__())
            chunks = response.iter_bytes()
            num_bytes = 0
            limit = deadline
            while True:
                with self._redacted_errors():
                    async with bounded(limit):
                        chunk = await cancelled_gently(_next(chunks))
                if chunk is None:
                    return
                num_bytes += len(chunk)
                _check_size(num_bytes)
                yield chunk
                stalled_at = asyncio.get_running_loop().time() + self._stall_s
                limit = stalled_at if deadline is None else min(stalled_at, deadline)
        finally:
            await cancelled_gently(opening.__aexit__(None, None, None))

    @asynccontextmanager
    async def _response(self, body: dict[str, Any]) -> AsyncIterator[Any]:
        """The opened reply. Raises: EngineError for any status but 200."""
        create = self._client.chat.completions.with_streaming_response.create
        async with create(**body) as response:
            if response.status_code != 200:
                raise InvalidReply(f"the provider answered with status {response.status_code}")
            yield response

    def _body(self, messages: Sequence[Message], sampling: Sampling, adapter: str | None, *, is_streamed: bool) -> dict[str, Any]:
        if adapter is not None:
            raise EngineRefused(f"adapter {adapter!r}: a hosted model takes no adapter; name the adapted model as a model of its own")
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logprobs": sampling.logprobs or None,
            "extra_body": self._config.extra_body or None,
            "extra_headers": None if self._key else {"Authorization": openai.omit},
            self._config.max_tokens_field: sampling.max_tokens,
        }
        if sampling.json_schema is not None and self._config.supports_json_schema:
            schema = {"name": "reply", "schema": sampling.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in body.items() if value is not None}

    def _estimated(self, messages: Sequence[Message], text: str) -> Usage:
        if not self._has_warned_of_usage:
            self._has_warned_of_usage = True
            _log.warning("%r reports no usage: tokens are estimated as bytes / 4", self)
        prompt_bytes = sum(len(m.content.encode()) for m in messages)
        return Usage(prompt_tokens=-(-prompt_bytes // 4), completion_tokens=-(-len(text.encode()) // 4))

    @contextmanager
    def _redacted_errors(self) -> Iterator[None]:
        """Whatever goes wrong inside as an EngineError without the key, and without the original in its traceback."""
        failure: EngineError
        try:
            yield
            return
        except EngineError as e:
            failure = e
        except openai.APIStatusError as e:
            failure = failure_from_status(e.status_code, e.response.headers, e.response.content)
        except openai.APIConnectionError as e:
            failure = EngineUnavailable(f"cannot reach the provider: {type(e.__cause__ or e).__name__}")
        except openai.OpenAIError as e:
            failure = InvalidReply(f"the provider's reply cannot be read: {type(e).__name__}")
        except Exception as e:
            # The HTTP library's own errors while a body is read; its base classes are no dependency of ours.
            if not type(e).__module__.startswith(("httpx", "httpcore")):
                raise
            failure = EngineUnavailable(f"the connection to the provider broke: {type(e).__name__}")
        raise self._redacted(failure) from None

    def _redacted(self, error: EngineError) -> EngineError:
        """Without the key, then cut short: the other way round half a key could stay at the end."""
        message = error.message.replace(self._key, "[key]") if self._key else error.message
        message = message[:MAX_MESSAGE_CHARS]
        return type(error)(message, error.retry_after_s) if isinstance(error, EngineUnavailable) else type(error)(message)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Reads what follows `[DONE]`, which should be nothing: a connection is used again only if its body was read to the end."""
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in chunks:
                pass


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_REPLY_BYTES:
        raise InvalidReply(f"the reply is longer than {MAX_REPLY_BYTES} bytes")


def _key(config: HostedEngineConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"environment variable {config.api_key_env} is not set: it must hold the key for model {config.model!r}")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"environment variable {config.api_key_env} holds characters that no HTTP header can carry")
    return key


def _client(config: HostedEngineConfig, key: str | None) -> openai.AsyncOpenAI:
    """Everything from `config`: what is left out here the client would take from OPENAI_* variables."""
    options: dict[str, Any] = {"max_retries": 0, "timeout": None}
    http_client = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None)
    if config.kind == "openai":
        headers: dict[str, Any] = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=config.base_url, default_headers=headers, http_client=http_client, **options
        )
    if key is None or config.api_version is None:
        raise ConfigError(f"model {config.model!r}: Azure needs api_key_env and api_version")
    return openai.AsyncAzureOpenAI(
        api_key=key, azure_endpoint=config.base_url, api_version=config.api_version, http_client=http_client, **options
    )
