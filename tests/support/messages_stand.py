"""The real endpoint over two providers: `claude` is at one that speaks Messages, `gpt` at one of chat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from starlette.types import ASGIApp

from r2_serve.config import HostedEngineConfig, ModelConfig, RouterConfig, RoutingConfig, ServerConfig
from r2_serve.http.api import create_app
from r2_serve.router.router import in_process
from r2_serve.types import Trace
from tests.support import agent_provider, messages_provider
from tests.support.hosted_stand import closed_by
from tests.support.served_app import serving_app
from tests.support.upstream import Upstream, running_upstream

PRICES = {
    "usd_per_mtok_in": Decimal("3"),
    "usd_per_mtok_out": Decimal("15"),
    "usd_per_mtok_cached_read": Decimal("0.3"),
    "usd_per_mtok_cached_write": Decimal("3.75"),
    "usd_per_mtok_cached_hour_write": Decimal("6"),
}


@dataclass
class MessagesStand:
    client: httpx.AsyncClient
    app: ASGIApp
    anthropic: Upstream
    openai: Upstream
    traces: list[Trace]

    async def ask(self, model: str = "claude", path: str = "/v1/messages", **fields: Any) -> httpx.Response:
        body = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post(path, json=body)


@asynccontextmanager
async def messages_stand(**engine: Any) -> AsyncIterator[MessagesStand]:
    """`engine` are settings of the model `claude`."""
    async with AsyncExitStack() as stack:
        anthropic, openai = [await stack.enter_async_context(running_upstream()) for _ in range(2)]
        anthropic.script, openai.script = messages_provider.answer, agent_provider.answer
        claude = {"kind": "anthropic", "model": "claude-real", "base_url": anthropic.base_url, **engine}
        gpt = {"kind": "openai", "model": "gpt-real", "base_url": openai.base_url}
        models = tuple(
            ModelConfig(name=name, engine=HostedEngineConfig(**config), **PRICES)
            for name, config in (("claude", claude), ("gpt", gpt))
        )
        traces: list[Trace] = []
        router = in_process(RouterConfig(models=models), _routing(), closed_by(stack), [traces.append])
        app = create_app(router, ServerConfig())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2", timeout=60)
        await stack.enter_async_context(client)
        yield MessagesStand(client, app, anthropic, openai, traces)


def _routing() -> RoutingConfig:
    virtual = {
        "pool": ["gpt", "claude"],
        "decomposer": {"model": "gpt"},
        "allocator": {"model": "gpt"},
        "default_model": "gpt",
    }
    return RoutingConfig(virtual_models={"r2": virtual})


@asynccontextmanager
async def anthropic_client(app: ASGIApp, key: str = "any") -> AsyncIterator[AsyncAnthropic]:
    async with (
        serving_app(app) as port,
        DefaultAsyncHttpxClient(verify=False) as http,
        AsyncAnthropic(
            base_url=f"http://127.0.0.1:{port}", api_key=key, max_retries=0, timeout=20, http_client=http
        ) as client,
    ):
        yield client
