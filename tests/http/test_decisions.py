"""A client sees whether its query was split, and why: in a header, in the reply and in a stream."""

from __future__ import annotations

import json

import httpx
import pytest

from benchmarks.cost_matrix import STATED, Provider, ProviderEngine, Workload, configs, plan_of, text_of
from r2_serve.config import ServerConfig
from r2_serve.http.api import create_app
from r2_serve.http.metrics import Metrics
from r2_serve.router.router import in_process

WORKLOAD = Workload("question", text_of(1_000), STATED, STATED)


@pytest.mark.parametrize(
    ("text", "decided", "num_steps"),
    [("hi", "whole; short", "1"), (WORKLOAD.text, "planned; may_save", "4")],
)
async def test_decision_is_in_the_header_the_reply_the_stream_and_the_metrics(
    text: str, decided: str, num_steps: str
) -> None:
    provider, metrics = Provider(plan_of(4), "cheap", STATED), Metrics()
    config, routing = configs(WORKLOAD, "cheap")
    router = in_process(config, routing, lambda card: ProviderEngine(provider, card.name), [metrics.observe])
    app = create_app(router, ServerConfig(), metrics=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        body = {"model": "r2", "messages": [{"role": "user", "content": text}]}
        reply = await client.post("/v1/chat/completions", json=body)
        streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
        shown = (await client.get("/metrics")).text
    assert (reply.headers["x-r2-decision"], reply.headers["x-r2-plan-nodes"]) == (decided, num_steps)
    decision = reply.json()["r2"]["decision"]
    assert f"{decision['action']}; {decision['reason']}" == decided
    assert (decision["baseline"], decision["expected_tokens"]) == ("expensive", STATED)
    assert float(decision["direct_usd"]) > 0
    last = json.loads(streamed.text.split("data: ")[-2])
    assert last["r2"]["decision"].keys() == decision.keys()
    assert last["r2"]["decision"]["reason"] == decision["reason"]
    action, reason = decided.split("; ")
    assert f'r2_decisions_total{{action="{action}",model="r2",reason="{reason}"}} 2.0' in shown
