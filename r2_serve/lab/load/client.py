"""Sends the requests of a load run, streamed by default, and fills in their replies."""

from __future__ import annotations

import asyncio

import httpx

from r2_serve.client import ChatReply, RequestFailed, ask, ask_streamed, chat_body, list_models, question
from r2_serve.errors import ConfigError
from r2_serve.lab.load.open_loop import LoadReply
from r2_serve.lab.workload import Request
from r2_serve.serve_config.document import suggestion


class LoadClient:
    """A `Send`. `timeout_s` limits a whole answer by the clock; a dripping stream does not outlive it."""

    def __init__(
        self, http: httpx.AsyncClient, *, timeout_s: float = 300.0, is_streamed: bool = True
    ) -> None:
        self._http, self._timeout_s, self._is_streamed = http, timeout_s, is_streamed

    async def __call__(self, request: Request, reply: LoadReply) -> None:
        query = question(request.model, request.text)
        body = chat_body(query, is_streamed=self._is_streamed, has_trace=False)
        reply.sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(body, reply)
            reply.status = httpx.codes.OK
        except TimeoutError:
            reply.error = f"timeout: no whole answer within {self._timeout_s:g} s"
        except RequestFailed as e:
            reply.status, reply.error = e.http_status, e.message

    async def _exchange(self, body: dict[str, object], reply: LoadReply) -> None:
        if not self._is_streamed:
            whole = await ask(self._http, body)
            reply.text = whole.text
            _take_figures(whole, reply)
            return
        texts: list[str] = []
        try:
            async for piece in ask_streamed(self._http, body):
                if piece.text and reply.first_token_at is None:
                    reply.first_token_at = asyncio.get_running_loop().time()
                texts.append(piece.text)
                _take_figures(piece, reply)
        finally:
            reply.text = "".join(texts)

    async def check(self, model: str) -> None:
        """Raises: ConfigError if the endpoint does not answer, refuses the key, or has no such model."""
        base_url = str(self._http.base_url).rstrip("/")
        if self._http.base_url.scheme not in ("http", "https"):
            raise ConfigError(f"--url {base_url!r} is no address: give one such as http://127.0.0.1:8000/v1")
        try:
            listed = await list_models(self._http)
        except RequestFailed as e:
            raise ConfigError(_no_endpoint(f"{base_url}/models", e)) from e
        if model not in listed:
            hint = suggestion(model, listed)
            raise ConfigError(f"the endpoint has no model {model!r}, which the workload asks for{hint}")


def _no_endpoint(url: str, failure: RequestFailed) -> str:
    match failure.http_status:
        case None:
            start_one = "Start one with `r2-serve up`, or name it with --url"
            return f"no endpoint answers at {url} ({failure.message}). {start_one}"
        case httpx.codes.NOT_FOUND:
            return f"{url} answered 404: no OpenAI-compatible endpoint is there. Does --url end in /v1?"
        case httpx.codes.OK:
            return f"{url} does not answer as an OpenAI-compatible endpoint: does --url end in /v1?"
        case _:
            return f"{url} answered {failure.message}"


def _take_figures(part: ChatReply, reply: LoadReply) -> None:
    if part.usage is not None:
        reply.prompt_tokens = part.usage.prompt_tokens or 0
        reply.completion_tokens = part.usage.completion_tokens or 0
    if part.r2 is not None:
        reply.cost_usd, reply.num_subtasks = part.r2.cost_usd, part.r2.subtasks
