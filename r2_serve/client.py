"""Asks a running endpoint many questions at once, as the demo and `ask` do. Plain HTTP, no Ray, no openai."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from r2_serve.types import Trace


@dataclass(frozen=True)
class Ask:
    """One request."""

    model: str
    text: str
    extras: dict[str, Any] = field(default_factory=dict)
    """The `r2` field, such as a policy or one's own plan."""


@dataclass(frozen=True)
class Reply:
    """What came back: an answer with its trace, or an error."""

    text: str | None
    trace: Trace | None
    latency_s: float
    error: str | None = None


async def ask(client: httpx.AsyncClient, request: Ask) -> Reply:
    """One request with its trace. An HTTP error is a `Reply.error`, not an exception."""
    extras = {"trace": True, **request.extras}
    body = {"model": request.model, "messages": [{"role": "user", "content": request.text}], "r2": extras}
    start_s = time.monotonic()
    try:
        response = await client.post("chat/completions", json=body)
    except httpx.HTTPError as e:
        return Reply(None, None, time.monotonic() - start_s, f"{type(e).__name__}: {e}")
    latency_s = time.monotonic() - start_s
    return _reply(response, latency_s)


async def ask_all(
    client: httpx.AsyncClient, requests: Sequence[Ask], *, at_once: int, on_reply: Callable[[], None]
) -> list[Reply]:
    """Replies in the order of `requests`, `at_once` under way at a time."""
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))

    async def work() -> None:
        for i, request in waiting:
            replies[i] = await ask(client, request)
            on_reply()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(requests))):
            group.create_task(work())
    return [reply for reply in replies if reply is not None]


def new_client(base_url: str, *, timeout_s: float = 300.0, api_key: str | None = None) -> httpx.AsyncClient:
    """A client of the endpoint at `base_url` (with its `/v1`)."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(
        base_url=base_url.rstrip("/") + "/", timeout=timeout_s, headers=headers, trust_env=False
    )


def _reply(response: httpx.Response, latency_s: float) -> Reply:
    try:
        body = response.json()
    except ValueError:
        return Reply(None, None, latency_s, f"HTTP {response.status_code}, not JSON: {response.text[:200]!r}")
    if "error" in body:
        return Reply(None, None, latency_s, f"HTTP {response.status_code}: {body['error']['message']}")
    trace = Trace.model_validate(body["r2"]["trace"])
    return Reply(body["choices"][0]["message"]["content"], trace, latency_s)
