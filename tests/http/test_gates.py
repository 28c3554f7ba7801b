"""A client asks for a gate, and sees what it did: in the header, the reply, the stream and the metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from r2_serve.config import GateConfig, RouterConfig, ServerConfig
from r2_serve.http.api import create_app
from r2_serve.http.metrics import Metrics
from r2_serve.router.router import Router as ServedRouter
from tests.support.in_process import Router, routing

AGREE = {"kind": "agreement", "by": "number"}
GATE = GateConfig.model_validate({"ask": ("small", "medium", "large"), "accept": (AGREE,)})
BODY = {"model": "r2", "messages": [{"role": "user", "content": "2 + 2?"}]}


@asynccontextmanager
async def served(**engines: Any) -> AsyncIterator[httpx.AsyncClient]:
    replies = {"small": ["4"], "medium": ["It is 4."], "large": ["six of 6"], **engines}
    routed = routing(pool=("small", "medium", "large"), gates={"careful": GATE})
    router, metrics = Router(routed=routed, decomposer=["?"], allocator=["?"], **replies), Metrics()
    router.pipeline.sinks = [metrics.observe]
    config = RouterConfig(models=tuple(member.config for member in router.pool.values()))
    backend = ServedRouter(config, lambda _: router.pipeline)
    backend.route_by(routed)
    app = create_app(backend, ServerConfig(), metrics=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        yield client


async def test_gate_is_in_the_header_the_reply_and_the_metrics() -> None:
    async with served() as client:
        reply = await client.post("/v1/chat/completions", json={**BODY, "r2": {"gate": "careful"}})
        shown = (await client.get("/metrics")).text
    assert reply.headers["x-r2-gates"] == "1=careful; kept=medium; asked=2; by=agreement"
    assert reply.json()["choices"][0]["message"]["content"] == "It is 4."
    (gate,) = reply.json()["r2"]["gates"]
    assert (gate["step"], gate["name"], gate["kept"]) == (1, "careful", "medium")
    first, second = gate["asked"]
    assert (first["model"], first["outcome"], first["reason"]) == (
        "small",
        "escalated",
        "2 answers are needed",
    )
    assert (second["outcome"], second["reason"]) == ("accepted", "agrees with small (number)")
    assert float(first["cost_usd"]) + float(second["cost_usd"]) == pytest.approx(
        float(reply.json()["r2"]["cost_usd"])
    )
    counted = 'asked="medium",evidence="agreement",gate="careful",model="r2",outcome="accepted"'
    assert f"r2_gate_answers_total{{{counted}}} 1.0" in shown


@pytest.mark.parametrize(("medium", "text", "kept"), [("4", "4", "medium"), ("5", "six of 6", "large")])
async def test_stream_shows_the_kept_answer_alone(medium: str, text: str, kept: str) -> None:
    async with served(medium=[medium]) as client:
        reply = await client.post(
            "/v1/chat/completions", json={**BODY, "stream": True, "r2": {"gate": "careful"}}
        )
    chunks = [json.loads(event) for event in reply.text.split("data: ")[1:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == text
    assert chunks[-1]["r2"]["gates"][0]["kept"] == kept


async def test_request_may_bring_a_gate_of_its_own() -> None:
    own = {"ask": ["small", "large"], "accept": [AGREE]}
    async with served() as client:
        reply = await client.post("/v1/chat/completions", json={**BODY, "r2": {"gate": own}})
    assert reply.headers["x-r2-gates"] == "1=request; kept=large; asked=2; by=last"


@pytest.mark.parametrize(
    ("gate", "param"),
    [
        ({"ask": ["small"], "accept": [AGREE]}, "r2.gate.ask"),
        ({"ask": ["small", "small"], "accept": [AGREE]}, "r2.gate"),
        ({"ask": ["small", "large"], "accept": []}, "r2.gate.accept"),
        ({"ask": ["small", "large"], "accept": [{"kind": "confidence"}]}, "r2.gate.accept.0.at_least"),
        (
            {"ask": ["small", "large"], "accept": [{"kind": "check", "function": "os:system"}]},
            "r2.gate.accept.0.kind",
        ),
        ({"ask": ["small", "gpt-9"], "accept": [AGREE]}, "r2.gate"),
        ({"ask": ["small", "large"], "accept": [AGREE], "file": "/etc/passwd"}, "r2.gate.file"),
        ("nothing", "r2.gate"),
        (7, "r2.gate"),
        (["careful"], "r2.gate"),
    ],
)
async def test_wrong_gate_is_refused_by_its_field(gate: object, param: str) -> None:
    async with served() as client:
        reply = await client.post("/v1/chat/completions", json={**BODY, "r2": {"gate": gate}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_model_list_names_the_gates_of_a_virtual_model() -> None:
    async with served() as client:
        models = (await client.get("/v1/models")).json()["data"]
    assert [model["r2"].get("gates") for model in models if model["id"] in ("r2", "small")] == [
        ["careful"],
        None,
    ]


async def test_pool_model_takes_no_gate() -> None:
    async with served() as client:
        body = {**BODY, "model": "small", "r2": {"gate": "careful"}}
        reply = await client.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "r2.gate")
