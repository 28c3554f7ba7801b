"""The metrics of observed queries."""

from __future__ import annotations

from decimal import Decimal

from r2_serve.http.metrics import Metrics
from r2_serve.types import CallRecord, Decision, Plan, Subtask, Trace, Usage
from tests.support.scripted_backend import ScriptedBackend, chat_body, make_client


def test_money_and_tokens_of_failed_queries_are_counted_exactly() -> None:
    metrics = Metrics()
    call = CallRecord(
        stage="execute",
        model="m",
        outcome="failed",
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        cost_usd=Decimal("0.1"),
    )
    for _ in range(3):
        metrics.observe(
            Trace(
                request_id="secret-id", model="r2", query="secret", calls=(call,), error="SubtaskFailed: no"
            )
        )
    text = metrics.render().decode()
    assert 'r2_cost_usd_total{model="m",stage="execute"} 0.3\n' in text
    assert 'r2_tokens_total{direction="in",model="m"} 9.0' in text
    assert 'r2_calls_total{model="m",outcome="failed",stage="execute"} 3.0' in text
    assert "secret" not in text


def test_plan_shape_and_fallbacks_are_counted() -> None:
    metrics = Metrics()
    steps = [Subtask(id=i, text="a") for i in (1, 2, 3)] + [Subtask(id=4, text="b", depends_on=(1, 2))]
    trace = Trace(
        request_id="r", model="r2", query="q", plan=Plan(subtasks=tuple(steps)), plan_fallback="cycle"
    )
    metrics.observe(trace)
    text = metrics.render().decode()
    assert "r2_plan_width_sum 3.0" in text
    assert "r2_plan_depth_sum 2.0" in text
    assert 'r2_fallbacks_total{stage="plan"} 1.0' in text


def test_decisions_are_counted_with_the_bill_beside_the_direct_call() -> None:
    metrics = Metrics()
    decision = Decision(
        action="whole", reason="short", baseline="m", expected_tokens=9, direct_usd=Decimal("0.2")
    )
    for error in (None, "SubtaskFailed: no"):
        metrics.observe(
            Trace(
                request_id="r",
                model="r2",
                query="q",
                decision=decision,
                cost_usd=Decimal("0.1"),
                error=error,
            )
        )
    text = metrics.render().decode()
    assert 'r2_decisions_total{action="whole",model="r2",reason="short"} 2.0' in text
    assert 'r2_compared_usd_total{kind="direct",model="r2"} 0.2' in text
    assert 'r2_compared_usd_total{kind="billed",model="r2"} 0.1' in text, "answered queries alone"


async def test_requests_are_counted_by_model_and_status() -> None:
    async with make_client(ScriptedBackend()) as client:
        await client.post("/v1/chat/completions", json=chat_body())
        await client.post("/v1/chat/completions", json=chat_body(model="x" * 50))
        response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'r2_requests_total{model="r2",route="/v1/chat/completions",status="200"} 1.0' in response.text
    assert 'r2_requests_total{model="",route="/v1/chat/completions",status="404"} 1.0' in response.text
    assert "xxx" not in response.text
