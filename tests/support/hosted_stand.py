"""The real endpoint in this process, over hosted models at loopback providers.

`first` falls back on `second`, `alone` on nothing; both are at the provider that the test scripts, `second`
at a healthy one. `first-slow` and `alone-slow` have a short timeout, for faults that only a timeout shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from starlette.types import ASGIApp

from r2_serve.calls.pool import EngineFor, Pool
from r2_serve.config import (
    HostedEngineConfig,
    LimitsConfig,
    ModelConfig,
    RouterConfig,
    RoutingConfig,
    ServerConfig,
)
from r2_serve.engines.hosted import HostedEngine
from r2_serve.http.api import create_app
from r2_serve.http.metrics import Metrics
from r2_serve.router.router import Router, in_process
from r2_serve.types import Trace
from tests.support.upstream import Script, Upstream, chunk, completion, running_upstream, sse

RIGHT = "the right answer"
TIMEOUT_S, SLOW_TIMEOUT_S = 60.0, 8.0
"""Timeout of a call; long, so that a slow machine changes no outcome."""
DEADLINE_S = 120.0


@dataclass
class Reply:
    """A reply as a client got it, streamed or not."""

    status: int
    text: str
    finish_reasons: list[str]
    error: dict[str, Any] | None
    took_s: float
    has_done: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    r2: dict[str, Any] | None = None
    usage: dict[str, int] | None = None


@dataclass
class Stand:
    client: httpx.AsyncClient
    upstream: Upstream
    other: Upstream
    metrics: Metrics
    router: Router
    app: ASGIApp
    traces: list[Trace] = field(default_factory=list)

    @property
    def pool(self) -> Pool:
        pipeline = self.router._pipeline
        assert pipeline is not None
        return pipeline.pool

    async def ask(
        self, *, stream: bool, model: str = "first", text: str = "two plus two", **extras: Any
    ) -> Reply:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            "r2": extras,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        started_s = asyncio.get_running_loop().time()
        response = await self.client.post("/v1/chat/completions", json=body)
        took_s = asyncio.get_running_loop().time() - started_s
        return (_streamed if "event-stream" in response.headers["content-type"] else _plain)(response, took_s)


@asynccontextmanager
async def standing(script: Any, **limits: Any) -> AsyncIterator[Stand]:
    """`script` is the behaviour of the faulty provider, or chooses it by a request's body."""
    async with AsyncExitStack() as stack:
        upstream, other = [await stack.enter_async_context(running_upstream()) for _ in range(2)]
        upstream.script, other.script = script, healthy
        metrics, traces = Metrics(), []
        config = RouterConfig(models=_models(upstream, other))
        router = in_process(config, routing(**limits), closed_by(stack), [metrics.observe, traces.append])
        app = create_app(router, ServerConfig(max_running=1000), metrics=metrics)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2", timeout=120)
        yield Stand(await stack.enter_async_context(client), upstream, other, metrics, router, app, traces)


def routing(**limits: Any) -> RoutingConfig:
    """`r2` sends everything to `first`; the text of `second` is no plan, so each plan has one step."""
    pool = ["first", "second", "alone", "first-slow", "alone-slow"]
    virtual = {
        "pool": pool,
        "decomposer": {"model": "second"},
        "allocator": {"model": "second"},
        "default_model": "first",
        "plan": "always",
    }
    return RoutingConfig(
        virtual_models={"r2": virtual}, limits=LimitsConfig(**{"deadline_s": DEADLINE_S, **limits})
    )


def healthy(request: dict[str, Any]) -> Script:
    if request.get("stream"):
        return Script(
            sse(chunk("the right"), chunk(" answer"), chunk(None, "stop"), "[DONE]"),
            headers={"content-type": "text/event-stream"},
        )
    return Script([json.dumps(completion(message={"role": "assistant", "content": RIGHT})).encode()])


def asked(upstream: Upstream, text: str) -> int:
    """The number of requests to a provider that contain `text`."""
    return sum(text in request["messages"][-1]["content"] for request in upstream.requests)


def _models(upstream: Upstream, other: Upstream) -> tuple[ModelConfig, ...]:
    def hosted(name: str, at: Upstream, timeout_s: float, *fallbacks: str) -> ModelConfig:
        engine = HostedEngineConfig(kind="openai", model=name, base_url=at.base_url)
        prices = {"usd_per_mtok_in": Decimal("0.15"), "usd_per_mtok_out": Decimal("0.6")}
        prices["usd_per_mtok_cached_read"] = Decimal("0.075")
        return ModelConfig(name=name, engine=engine, fallbacks=fallbacks, timeout_s=timeout_s, **prices)

    return (
        hosted("first", upstream, TIMEOUT_S, "second"),
        hosted("alone", upstream, TIMEOUT_S),
        hosted("first-slow", upstream, SLOW_TIMEOUT_S, "second"),
        hosted("alone-slow", upstream, SLOW_TIMEOUT_S),
        hosted("second", other, TIMEOUT_S),
    )


def closed_by(stack: AsyncExitStack) -> EngineFor:
    """Makes hosted engines that `stack` closes."""

    def engine_for(model: ModelConfig) -> HostedEngine:
        assert isinstance(model.engine, HostedEngineConfig)
        engine = HostedEngine(model.engine)
        stack.push_async_callback(engine.aclose)
        return engine

    return engine_for


def _plain(response: httpx.Response, took_s: float) -> Reply:
    body, headers = response.json(), dict(response.headers)
    if "error" in body:
        return Reply(response.status_code, "", [], body["error"], took_s, headers=headers)
    (choice,) = body["choices"]
    text, reasons = choice["message"]["content"], [choice["finish_reason"]]
    return Reply(
        response.status_code, text, reasons, None, took_s, headers=headers, r2=body["r2"], usage=body["usage"]
    )


def _streamed(response: httpx.Response, took_s: float) -> Reply:
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(item) for item in data if item != "[DONE]"]
    choices = [choice for item in chunks for choice in item.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    errors = [item["error"] for item in chunks if "error" in item]
    assert len(errors) <= 1
    reply = Reply(
        response.status_code,
        text,
        reasons,
        errors[0] if errors else None,
        took_s,
        data[-1] == "[DONE]",
        dict(response.headers),
    )
    reply.r2, reply.usage = chunks[-1].get("r2"), chunks[-1].get("usage")
    return reply
