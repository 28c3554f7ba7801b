"""Queries as distributed traces: what a real OTLP receiver gets, and what a failing one costs (nothing)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from r2_serve.config import HostedEngineConfig, ModelConfig, OtelConfig, RouterConfig, ServerConfig
from r2_serve.engines import make_engine
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.http.api import create_app
from r2_serve.otel.telemetry import Telemetry
from r2_serve.router.router import in_process
from r2_serve.types import Engine
from tests.support.collector import Collector, attributes
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.load_endpoint import serving
from tests.support.upstream import Script, completion, running_upstream

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SECRET = "how old is the queen of hearts"


def engines() -> dict[str, Engine]:
    plan = plan_json("a first step", "a second step", "join #1 and #2")
    return {
        "decomposer": ScriptedEngine([plan]),
        "allocator": ScriptedEngine([allocation_json("small", "small", "large")]),
        "small": ScriptedEngine(["one", EngineUnavailable("down"), "two"]),
        "large": ScriptedEngine(["one and two"]),
    }


class Asked:
    """A router with telemetry; `ask` sends one query and then what is left to the collector."""

    def __init__(self, endpoint: str, made: dict[str, Engine] | None = None, **otel: Any) -> None:
        self.config = OtelConfig(endpoint=endpoint, **otel)
        server, made = ServerConfig(otel=self.config), made or engines()
        models = tuple(model(name) for name in made)
        self.telemetry = Telemetry(self.config, models)
        router = in_process(
            RouterConfig(models=models, server=server),
            routing(),
            lambda card: made[card.name],
            [self.telemetry],
        )
        self.app = create_app(router, server, environment={})

    async def ask(self, **headers: str) -> httpx.Response:
        body = {"model": "r2", "messages": [{"role": "user", "content": SECRET}]}
        async with serving(self.app) as url, httpx.AsyncClient() as client:
            reply = await client.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30)
        await asyncio.to_thread(self.telemetry.close)
        return reply


def collected(*, status: int = 200, sent: dict[str, str] | None = None, **otel: Any) -> Collector:
    """What the collector has after one query."""

    async def run() -> Collector:
        collector = Collector(status=status)
        async with serving(collector.app) as url:
            reply = await Asked(url.removesuffix("/v1"), **otel).ask(**(sent or {}))
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == "one and two"
        return collector

    return asyncio.run(run())


def test_query_of_three_steps_with_one_retry_is_one_trace() -> None:
    collector = collected()
    assert collector.tree() == [
        "invoke_workflow r2",
        "  plan r2",
        "    chat decomposer",
        "  allocate r2",
        "    chat allocator",
        "  subtask 1",
        "    chat small",
        "  subtask 2",
        "    chat small (EngineUnavailable)",
        "    chat small",
        "  subtask 3",
        "    chat large",
    ]
    assert len({span.trace_id for span in collector.spans}) == 1


def test_spans_hold_tokens_and_costs_that_sum_to_the_query() -> None:
    spans = [attributes(span) for span in collected().spans]
    calls = [span for span in spans if span.get("gen_ai.operation.name") == "chat"]
    (query,) = [span for span in spans if span.get("gen_ai.operation.name") == "invoke_workflow"]
    assert query["r2.cost_usd"] == pytest.approx(sum(call["r2.cost_usd"] for call in calls))
    assert all(call["gen_ai.usage.input_tokens"] > 0 for call in calls if "error.type" not in call)


def test_metrics_arrive_too() -> None:
    names = {"gen_ai.client.token.usage", "gen_ai.client.operation.duration", "r2.query.duration", "r2.cost"}
    assert collected().metric_names == names


def test_no_text_leaves_unless_asked_for() -> None:
    assert SECRET not in str(collected().spans)
    assert SECRET in str(collected(content=True).spans)


def test_query_goes_on_the_trace_of_its_client() -> None:
    collector = collected(sent={"traceparent": SAMPLED}, sample=0)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    (root,) = [span for span in collector.spans if span.name.startswith("invoke_workflow")]
    assert root.parent_span_id.hex() == PARENT


@pytest.mark.parametrize(("sent", "otel"), [({}, {"sample": 0}), ({"traceparent": UNSAMPLED}, {"sample": 1})])
def test_query_that_is_not_sampled_sends_no_span(sent: dict[str, str], otel: dict[str, Any]) -> None:
    assert collected(sent=sent, **otel).spans == []


@pytest.mark.parametrize("header", ["", "nonsense", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01"])
def test_wrong_header_begins_a_trace_of_its_own(header: str) -> None:
    (root,) = [s for s in collected(sent={"traceparent": header}).spans if "workflow" in s.name]
    assert root.parent_span_id == b""


def test_headers_of_the_collector_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TOKEN", "authorization=Bearer%20abc, x-team=r2")
    found = collected(headers_env="OTEL_TOKEN").headers
    assert {(h["authorization"], h["x-team"]) for h in found} == {("Bearer abc", "r2")}
    monkeypatch.setenv("OTEL_TOKEN", "no pairs")
    with pytest.raises(ConfigError, match="OTEL_TOKEN must hold headers"):
        Telemetry(OtelConfig(endpoint="http://127.0.0.1:9", headers_env="OTEL_TOKEN"), ())


@pytest.mark.parametrize("status", [500, 401])
def test_collector_that_refuses_costs_no_answer(status: int) -> None:
    collected(status=status)


def test_collector_that_is_away_costs_no_answer() -> None:
    reply = asyncio.run(Asked("http://127.0.0.1:9").ask())
    assert reply.status_code == 200


@pytest.mark.parametrize("has_otel", [True, False], ids=["recorded", "unrecorded"])
def test_provider_gets_the_trace(has_otel: bool) -> None:
    """If R2 records spans, it gets the span of its call; without, the client's header as it is."""

    async def run() -> tuple[str, Collector]:
        collector = Collector()
        async with running_upstream() as upstream, serving(collector.app) as url:
            upstream.script = Script([json.dumps(completion()).encode()])
            engine = HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url)
            card = ModelConfig(name="m", usd_per_mtok_in=1, usd_per_mtok_out=1, engine=engine)
            otel = OtelConfig(endpoint=url.removesuffix("/v1")) if has_otel else None
            server, sinks = ServerConfig(otel=otel), [Telemetry(otel, (card,))] if otel else []
            pool_router = in_process(
                RouterConfig(models=(card,), server=server),
                routing(pool=("m",), decomposer={"model": "m"}, allocator={"model": "m"}),
                lambda config: make_engine(config.engine),
                sinks,
            )
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            app = create_app(pool_router, server, environment={})
            async with serving(app) as base, httpx.AsyncClient() as client:
                sent = {"traceparent": SAMPLED}
                await client.post(f"{base}/chat/completions", json=body, headers=sent, timeout=30)
            for sink in sinks:
                await asyncio.to_thread(sink.close)
            return upstream.requests[0]["_headers"]["traceparent"], collector

    received, collector = asyncio.run(run())
    if not has_otel:
        assert received == SAMPLED
        return
    (call,) = [span for span in collector.spans if span.name == "chat m"]
    assert received == f"00-{TRACE}-{call.span_id.hex()}-01"
