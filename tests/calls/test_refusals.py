"""A call refused before any work costs nothing; one that may have been worked on is booked as an estimate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal

import pytest

from r2_serve.config import HostedEngineConfig, LimitsConfig, RouterConfig
from r2_serve.engines.hosted import HostedEngine
from r2_serve.errors import EngineError, QuotaExceeded
from r2_serve.router.router import in_process
from r2_serve.types import CallRecord, Trace
from tests.support.in_process import model, query, routing
from tests.support.upstream import Script, Upstream, chunk, completion, running_upstream, sse

DOCUMENT = "x" * 50_000
TIMEOUT_S = 5.0


class KeyBudget:
    """The purse of a client key, which notes what is held and what is spent."""

    def __init__(self) -> None:
        self.held_usd = self.spent_usd = Decimal(0)

    def left_usd(self) -> Decimal:
        return Decimal(10)

    def hold(self, usd: Decimal) -> None:
        self.held_usd += usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self.held_usd -= held_usd
        self.spent_usd += spent_usd

    def refusal(self) -> QuotaExceeded:
        return QuotaExceeded("the budget of the key is used up")


async def failed_call(base_url: str, *, is_streamed: bool, timeout_s: float = TIMEOUT_S) -> CallRecord:
    """The record of one call with a long document that the provider at `base_url` does not answer."""
    engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=base_url))
    names = ("small", "large", "decomposer", "allocator")
    config = RouterConfig(models=tuple(model(name, timeout_s=timeout_s) for name in names))
    traces: list[Trace] = []
    routed = routing(limits=LimitsConfig(max_attempts=1))
    router, purse = in_process(config, routed, lambda _: engine, [traces.append]), KeyBudget()

    async def ignore(text: str) -> None: ...

    with pytest.raises(EngineError):
        await router.answer(query(DOCUMENT, model="small"), ignore if is_streamed else None, purse)
    await engine.aclose()
    (call,) = traces[0].calls
    assert (purse.held_usd, purse.spent_usd) == (0, call.cost_usd) == (0, traces[0].cost_usd)
    return call


def refusal(status: int) -> Script:
    return Script(status=status, body=[b'{"error": {"message": "no"}}'])


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 413, 422, 429])
async def test_refused_call_costs_nothing(status: int, is_streamed: bool) -> None:
    async with running_upstream() as upstream:
        upstream.script = refusal(status)
        call = await failed_call(upstream.base_url, is_streamed=is_streamed)
    assert (call.outcome, call.cost_usd, call.usage.total_tokens, call.is_estimated) == (
        "failed",
        0,
        0,
        False,
    )


async def test_refusal_inside_a_200_costs_nothing() -> None:
    async with running_upstream() as upstream:
        upstream.script = Script(body=[b'{"error": {"message": "slow down", "code": 429}}'])
        call = await failed_call(upstream.base_url, is_streamed=False)
    assert (call.error, call.cost_usd) == ("NotStarted", 0)


@asynccontextmanager
async def plain_text_server() -> AsyncIterator[int]:
    """The port of a server that speaks no TLS."""

    def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is not TLS\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("fault", ["refused connection", "unknown host", "no TLS"])
async def test_provider_that_is_not_reached_costs_nothing(fault: str, is_streamed: bool) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(plain_text_server())
        if fault == "refused connection":
            await stack.aclose()
        scheme, host = "https" if fault == "no TLS" else "http", "127.0.0.1"
        host = "no-such-host.invalid" if fault == "unknown host" else host
        call = await failed_call(f"{scheme}://{host}:{port}/v1", is_streamed=is_streamed)
    assert (call.error, call.cost_usd, call.is_estimated) == ("NotStarted", 0, False)


def cut_stream(upstream: Upstream) -> None:
    upstream.script = Script(body=sse(chunk("four")), headers={"content-type": "text/event-stream"})


def silence(upstream: Upstream) -> None:
    upstream.script = Script(is_held=True)


def server_error(upstream: Upstream) -> None:
    upstream.script = refusal(500)


def broken_connection(upstream: Upstream) -> None:
    upstream.script = Script(has_head=False, is_reset=True)


def not_json(upstream: Upstream) -> None:
    upstream.script = Script(body=[b"<html>"])


@pytest.mark.parametrize("fault", [cut_stream, silence, server_error, broken_connection, not_json])
async def test_call_that_may_have_been_worked_on_is_booked_as_an_estimate(
    fault: Callable[[Upstream], None],
) -> None:
    async with running_upstream() as upstream:
        fault(upstream)
        call = await failed_call(upstream.base_url, is_streamed=fault is cut_stream, timeout_s=1.0)
    assert call.is_estimated
    assert call.usage.prompt_tokens == len(DOCUMENT) // 4
    assert call.usage.completion_tokens == (1 if fault is cut_stream else 0)


async def test_usage_reported_with_a_failed_reply_is_billed_as_reported() -> None:
    async with running_upstream() as upstream:
        reply = completion(message={"content": None})
        upstream.script = Script(body=[json.dumps(reply).encode()])
        call = await failed_call(upstream.base_url, is_streamed=False)
    assert (call.error, call.usage.total_tokens, call.is_estimated) == ("InvalidReply", 9, False)
