"""Endpoints on a loopback port: the real router over scripted models, or any ASGI application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from r2_serve.calls.pool import in_process_engines
from r2_serve.config import ServerConfig
from r2_serve.http.api import create_app
from r2_serve.http.metrics import Metrics
from r2_serve.lab.workload import SCRIPTED_POOL
from r2_serve.router.router import in_process
from r2_serve.serve_config import load
from tests.support.served_app import serving_app


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The base URL at which `app` is served."""
    async with serving_app(app) as port:
        yield f"http://127.0.0.1:{port}/v1"


def router_app() -> Any:
    """The pool of the examples in this process, without cold starts and delays."""
    config = load(SCRIPTED_POOL)
    apps = {
        name: app.model_copy(update={"engine": app.engine.model_copy(update={"speed": None, "delay_s": 0.0})})
        for name, app in config.model_apps.items()
    }
    metrics = Metrics()
    router = in_process(config.router, config.routing, in_process_engines(apps), [metrics.observe])
    return create_app(router, ServerConfig(max_running=64, max_queued=1000), metrics=metrics, environment={})


async def _whole(_: object) -> list[bytes]:
    return whole()


def sse_app(
    answer: Callable[[int], Awaitable[list[bytes]]] = _whole,
    *,
    answer_to: Callable[[str], Awaitable[list[bytes]]] | None = None,
    model: str = "r2",
    status: int = 200,
) -> Any:
    """Request number N, from 0, gets the pieces of a body that `answer(N)`, or `answer_to(text)`, gives."""
    count = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        if scope["path"] == "/v1/models":
            await _send(send, 200, b"application/json", [json.dumps({"data": [{"id": model}]}).encode()])
            return
        if scope["path"] != "/v1/chat/completions":
            await _send(send, 404, b"text/plain", [b"no"])
            return
        number, count, body = count, count + 1, b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        if answer_to is None:
            pieces = await answer(number)
        else:
            pieces = await answer_to(json.loads(body)["messages"][-1]["content"])
        await _send(send, status, b"text/event-stream" if status == 200 else b"application/json", pieces)

    return app


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def chunk(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def whole(text: str = "ok", cost_usd: str = "0.001") -> list[bytes]:
    """The events of one good reply."""
    usage = {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        "r2": {"cost_usd": cost_usd, "subtasks": 2},
    }
    return [chunk(text), event(usage), b"data: [DONE]\n\n"]


async def _send(send: Any, status: int, kind: bytes, pieces: list[bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
