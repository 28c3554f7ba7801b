"""The HTTP side of a load run: chat completions, streamed unless told otherwise, from R2 or any OpenAI-compatible endpoint.

Over httpx, as `r2_serve.client`, not the openai SDK: no retries of its own, and less work for each request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx

from r2_serve.errors import ConfigError
from r2_serve.lab.load.open_loop import Reply
from r2_serve.lab.workload import Request
from r2_serve.serve_config.document import suggestion

_DATA, _DONE = "data: ", "[DONE]"
_CHECK_TIMEOUT_S = 30.0


class LoadClient:
    """Sends requests: a `Send`. `timeout_s` is for a whole answer, by the clock: a stream that drips does not outlive it."""

    def __init__(
        self, http: httpx.AsyncClient, *, timeout_s: float = 300.0, is_streamed: bool = True
    ) -> None:
        self._http, self._timeout_s, self._is_streamed = http, timeout_s, is_streamed

    async def __call__(self, request: Request, reply: Reply) -> None:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": "user", "content": request.text}],
        }
        if self._is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body).encode()
        reply.sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(content, reply)
        except TimeoutError:
            reply.error = f"timeout: no whole answer within {self._timeout_s:g} s"
        except httpx.HTTPError as e:
            reply.error = f"{type(e).__name__}: {e}"
        except (ValueError, KeyError, IndexError, TypeError, ArithmeticError) as e:
            reply.error = f"not a chat completion: {type(e).__name__}: {e}"

    async def _exchange(self, content: bytes, reply: Reply) -> None:
        headers = {"content-type": "application/json"}
        async with self._http.stream(
            "POST", "chat/completions", content=content, headers=headers
        ) as response:
            reply.status = response.status_code
            if response.status_code != httpx.codes.OK:
                reply.error = _error(response.status_code, await response.aread())
            elif self._is_streamed:
                await _read_stream(response, reply)
            else:
                _take(json.loads(await response.aread()), "message", reply)

    async def check(self, model: str) -> None:
        """Raises: ConfigError where the endpoint does not answer, refuses the key, or has no such model."""
        url = f"{self._http.base_url}models"
        if self._http.base_url.scheme not in ("http", "https"):
            raise ConfigError(
                f"--url {str(self._http.base_url).rstrip('/')!r} is no address: give one such as http://127.0.0.1:8000/v1"
            )
        try:
            response = await self._http.get("models", timeout=_CHECK_TIMEOUT_S)
            listed = (
                [str(item["id"]) for item in response.json()["data"]]
                if response.status_code == httpx.codes.OK
                else []
            )
        except httpx.HTTPError as e:
            raise ConfigError(
                f"no endpoint answers at {url} ({type(e).__name__}: {e}). Start one with `r2-serve up`, or name it with --url"
            ) from e
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{url} does not answer as an OpenAI-compatible endpoint: does --url end in /v1?"
            ) from e
        if response.status_code == httpx.codes.NOT_FOUND:
            raise ConfigError(
                f"{url} answered 404: no OpenAI-compatible endpoint is there. Does --url end in /v1?"
            )
        if response.status_code != httpx.codes.OK:
            raise ConfigError(f"{url} answered {_error(response.status_code, response.content)}")
        if model not in listed:
            raise ConfigError(
                f"the endpoint has no model {model!r}, which the workload asks for{suggestion(model, listed)}"
            )


@asynccontextmanager
async def load_http(
    base_url: str, *, api_key: str | None, max_open: int, timeout_s: float
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with room for `max_open` connections; nothing it waits for ends before `timeout_s`."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(
        max_connections=max_open + 1, max_keepalive_connections=max_open + 1
    )  # one more, for looking at /metrics
    async with httpx.AsyncClient(
        base_url=base_url.rstrip("/") + "/",
        headers=headers,
        limits=limits,
        timeout=timeout_s,
        trust_env=False,
    ) as http:
        yield http


async def _read_stream(response: httpx.Response, reply: Reply) -> None:
    pieces: list[str] = []
    try:
        async for line in response.aiter_lines():
            if not line.startswith(_DATA):
                continue
            if line == _DATA + _DONE:
                return
            event = json.loads(line[len(_DATA) :])
            if "error" in event:
                reply.error = _error(response.status_code, line[len(_DATA) :].encode())
                return
            if text := _take(event, "delta", reply):
                pieces.append(text)
                if reply.first_token_at is None:
                    reply.first_token_at = asyncio.get_running_loop().time()
        reply.error = "cut off: the stream ended without [DONE]"
    finally:
        reply.text = "".join(pieces)


def _take(body: Mapping[str, Any], part: str, reply: Reply) -> str:
    """Takes usage and cost out of a reply or a chunk; its text."""
    if usage := body.get("usage"):
        reply.prompt_tokens, reply.completion_tokens = (
            int(usage["prompt_tokens"]),
            int(usage["completion_tokens"]),
        )
    if r2 := body.get("r2"):
        reply.cost_usd, reply.num_subtasks = Decimal(r2["cost_usd"]), int(r2["subtasks"])
    text = str(body["choices"][0][part].get("content") or "") if body["choices"] else ""
    if part == "message":
        reply.text = text
    return text


def _error(status: int, body: bytes) -> str:
    """`STATUS CODE: message`."""
    try:
        error = json.loads(body)["error"]
        return (
            f"{status} {error.get('code') or error.get('type') or ''}".rstrip()
            + f": {str(error['message'])[:500]}"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{status}: {body[:200]!r}"
