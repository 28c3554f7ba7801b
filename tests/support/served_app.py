"""Any of our applications under uvicorn on a loopback port, and the real `openai` client of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from starlette.types import ASGIApp


@asynccontextmanager
async def serving_app(app: ASGIApp) -> AsyncIterator[int]:
    """The port at which `app` is served."""
    listening = socket.socket(
        proto=socket.IPPROTO_TCP
    )  # without the number asyncio sets no TCP_NODELAY: 40 ms a reply
    listening.bind(("127.0.0.1", 0))
    listening.listen(512)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


@asynccontextmanager
async def openai_client(app: ASGIApp, key: str = "any") -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving_app(app) as port,
        DefaultAsyncHttpxClient(
            verify=False
        ) as http,  # plain HTTP: reading the system's certificates would take longer than the test
        AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=20, http_client=http
        ) as client,
    ):
        yield client
