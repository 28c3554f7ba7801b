"""Streams byte for byte, heartbeats, late errors, clients that leave, and the queue, timed by events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from r2_serve.config import CooldownConfig, LimitsConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import SubtaskFailed
from r2_serve.http.admission import Admission
from r2_serve.http.api import create_app
from r2_serve.http.endpoint import LAST_WORDS_S
from r2_serve.router.router import in_process
from r2_serve.types import Query
from tests.support import virtual_time
from tests.support.in_process import model, routing
from tests.support.scripted_backend import (
    Connection,
    ScriptedBackend,
    chat_body,
    connect,
    make_app,
    make_client,
)
from tests.support.waiting import until

URL = "/v1/chat/completions"
HEAD = '{"id":"chatcmpl-id2","object":"chat.completion.chunk","created":1750000000,"model":"r2",'
R2 = (
    '"r2":{"cost_usd":"0.0000022","worker_cost_usd":"0.0000015","prices_as_of":"2026-11-01",'
    '"models":["org/small"],"subtasks":2,"policy":"learned","decision":null,"plan_fallback":null,'
    '"allocation_fallback":null,'
    '"overhead_ms":12.5,"duration_ms":500.0}'
)


def chunk(delta: str, finish_reason: str = "null", more: str = "") -> str:
    choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}'
    return f'data: {HEAD}"choices":[{choice}]{more}}}\n\n'


ROLE = '{"role":"assistant","content":"","refusal":null}'


async def test_stream_has_exactly_these_bytes() -> None:
    async with make_client(ScriptedBackend()) as client:
        response = await client.post(URL, json=chat_body(stream=True))
    parts = [
        chunk(ROLE),
        chunk('{"content":"Hello"}'),
        chunk('{"content":" there"}'),
        chunk("{}", '"stop"', "," + R2),
        "data: [DONE]\n\n",
    ]
    assert response.text == "".join(parts)
    expected = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }
    assert dict(response.headers) == {**expected, "x-request-id": "req_id1"}


async def test_stream_with_usage_has_exactly_these_bytes() -> None:
    async with make_client(ScriptedBackend()) as client:
        response = await client.post(URL, json=chat_body(stream=True, stream_options={"include_usage": True}))
    none = ',"usage":null'
    parts = [
        chunk(ROLE, more=none),
        chunk('{"content":"Hello"}', more=none),
        chunk('{"content":" there"}', more=none),
    ]
    usage = '"usage":{"prompt_tokens":30,"completion_tokens":7,"total_tokens":37}'
    parts += [chunk("{}", '"stop"', none), f'data: {HEAD}"choices":[],{usage},{R2}}}\n\n', "data: [DONE]\n\n"]
    assert response.text == "".join(parts)


def contents(body: str) -> list[str]:
    """Each content delta of a stream's text."""
    data = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    return [
        c["choices"][0]["delta"]["content"]
        for c in data
        if c["choices"] and "content" in c["choices"][0]["delta"]
    ]


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        ((), "all at the end", ["", "all at the end"]),
        ((), "", [""]),
        (("one", "", " two"), "one two", ["", "one", " two"]),
        (("one",), "one two", ["", "one", " two"]),
        ((" one\n",), "one", ["", " one\n"]),
        ((" one",), "one two", ["", " one", " two"]),
    ],
)
async def test_joined_stream_is_the_whole_answer(
    pieces: tuple[str, ...], text: str, expected: list[str]
) -> None:
    async with make_client(ScriptedBackend(pieces=pieces, text=text)) as client:
        response = await client.post(URL, json=chat_body(stream=True))
    assert contents(response.text) == expected
    assert response.text.endswith("data: [DONE]\n\n")
    assert response.text.count('"finish_reason":"stop"') == 1


async def test_stream_that_differs_from_the_answer_ends_in_an_error() -> None:
    async with make_client(ScriptedBackend(pieces=("one",), text="two")) as client:
        response = await client.post(URL, json=chat_body(stream=True))
    assert '"code":"invalid_upstream_reply"' in response.text
    assert "[DONE]" not in response.text and '"finish_reason":"stop"' not in response.text


async def test_error_after_text_is_an_event_without_done() -> None:
    backend = ScriptedBackend(pieces=("one",), error=SubtaskFailed("subtask 1 failed", 1, "org/small"))
    async with make_client(backend) as client:
        response = await client.post(URL, json=chat_body(stream=True))
        metrics = (await client.get("/metrics")).text
    assert response.status_code == 200
    error = '{"message":"subtask 1 failed","type":"api_error","param":null,"code":"subtask_failed"}'
    last = f'data: {{"error":{error}}}\n\n'
    assert response.text == chunk(ROLE) + chunk('{"content":"one"}') + last
    assert 'model="r2",route="/v1/chat/completions",status="502"' in metrics


async def test_heartbeats_come_before_the_first_text_and_keep_the_order() -> None:
    backend = ScriptedBackend(pieces=(), text="late", gate=asyncio.Event())
    connection = connect(make_app(backend, heartbeat_s=0.005), stream=True)
    assert [await connection.next_body() for _ in range(3)] == [b": keep-alive\n\n"] * 3
    assert backend.gate
    backend.gate.set()
    await connection.task
    rest = b""
    while not connection.outbox.empty():
        rest += await connection.next_body()
    text = rest.decode().replace(": keep-alive\n\n", "")
    assert (
        text
        == chunk(ROLE) + chunk('{"content":"late"}') + chunk("{}", '"stop"', "," + R2) + "data: [DONE]\n\n"
    )


async def test_error_after_a_heartbeat_is_an_event() -> None:
    backend = ScriptedBackend(
        pieces=(), error=SubtaskFailed("subtask 1 failed", 1, "org/small"), gate=asyncio.Event()
    )
    connection = connect(make_app(backend, heartbeat_s=0.005), stream=True)
    assert (await connection.outbox.get())["status"] == 200
    assert backend.gate
    backend.gate.set()
    await connection.task
    sent = [connection.outbox.get_nowait() for _ in range(connection.outbox.qsize())]
    assert b'data: {"error":{"message":"subtask 1 failed"' in sent[-1]["body"]
    assert [message["more_body"] for message in sent] == [True] * (len(sent) - 1) + [False]


@pytest.mark.parametrize("num_read", [1, 3, 5])
def test_deadline_ends_a_client_that_never_reads_and_does_not_blame_the_model(
    num_read: int,
) -> None:
    """The client has room for that many messages; a whole answer has six: head, one for each word, end."""

    async def scenario() -> tuple[float, str, bool]:
        models = tuple(model(name, timeout_s=5) for name in ("small", "large", "decomposer", "allocator"))
        limits = LimitsConfig(cooldown=CooldownConfig(after_failures=1))
        router = in_process(
            RouterConfig(models=models),
            routing(limits=limits),
            lambda _: ScriptedEngine(["one two three four"], delay_s=4),
        )
        app = create_app(router, ServerConfig(heartbeat_s=1000), new_id=lambda: "1")
        body = chat_body(stream=True, r2={"deadline_s": 60}) | {"model": "small"}
        connection = Connection(app, json.dumps(body).encode(), outbox=asyncio.Queue(num_read))
        await connection.task
        took_s, metrics = virtual_time.now_s(), await fetch(app, "/metrics")
        assert router._pipeline is not None
        return took_s, metrics, router._pipeline.pool["small"].cooldown.is_resting

    took_s, metrics, is_resting = virtual_time.run(scenario())
    assert 60 <= took_s <= 60 + LAST_WORDS_S
    assert 'model="small",route="/v1/chat/completions",status="499"} 1.0' in metrics
    assert "r2_requests_running 0.0" in metrics
    assert not is_resting


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_cancels_the_work(stream: bool) -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    app = make_app(backend)
    connection = connect(app, stream=stream)
    await backend.has_started.wait()
    connection.disconnect()
    await connection.task
    assert backend.was_cancelled.is_set()
    metrics = await fetch(app, "/metrics")
    assert 'model="r2",route="/v1/chat/completions",status="499"} 1.0' in metrics
    assert "r2_requests_running 0.0" in metrics


async def test_client_that_leaves_while_sending_costs_nothing() -> None:
    backend = ScriptedBackend()
    connection = Connection(make_app(backend), b'{"model"', is_whole=False)
    connection.disconnect()
    await connection.task
    assert connection.outbox.empty()
    assert not backend.queries


async def test_cancelling_the_application_cancels_the_work() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    connection = connect(make_app(backend))
    await backend.has_started.wait()
    connection.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connection.task
    assert backend.was_cancelled.is_set()


async def fetch(app: Any, path: str) -> str:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(
        {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""},
        receive,
        send,
    )
    return b"".join(message.get("body", b"") for message in sent).decode()


async def test_full_queue_refuses_and_serves_the_others_in_order() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    app = make_app(backend, max_running=1, max_queued=1)
    first = connect(app)
    await backend.has_started.wait()
    second, third = connect(app), connect(app)
    await third.task
    start, body = third.outbox.get_nowait(), third.outbox.get_nowait()
    assert start["status"] == 429
    assert int(dict(start["headers"])[b"retry-after"]) >= 1
    assert json.loads(body["body"])["error"]["code"] == "overloaded"
    assert len(backend.queries) == 1
    assert backend.gate
    backend.gate.set()
    await asyncio.gather(first.task, second.task)
    assert [c.outbox.get_nowait()["status"] for c in (first, second)] == [200, 200]
    assert len(backend.queries) == 2


async def test_queued_client_that_leaves_frees_its_place() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    app = make_app(backend, max_running=1, max_queued=1)
    first = connect(app)
    await backend.has_started.wait()
    second = connect(app, stream=True)

    async def is_queued() -> bool:
        return "r2_requests_queued 1.0" in await fetch(app, "/metrics")

    await until(is_queued)
    second.disconnect()
    await second.task
    third = connect(app)
    assert backend.gate
    backend.gate.set()
    await asyncio.gather(first.task, third.task)
    assert third.outbox.get_nowait()["status"] == 200
    assert len(backend.queries) == 2


@pytest.mark.parametrize(("own_s", "served_s"), [(2, 5), (None, 2), (9, 2)])
def test_one_deadline_bounds_the_wait_in_the_queue_and_the_work(own_s: float | None, served_s: float) -> None:
    """The sooner deadline counts, the request's or the server's: a place after 1.5 of 2 s leaves half a
    second.
    """

    async def scenario() -> tuple[int, float, Query]:
        backend = ScriptedBackend(gate=asyncio.Event(), deadline_s=served_s)
        app = make_app(backend, admission=Admission(1, 10, clock=virtual_time.now_s))
        first = connect(app)
        await backend.has_started.wait()
        given = {"r2": {"deadline_s": own_s}} if own_s else {}
        second, third = connect(app, **given), connect(app, **given)
        await asyncio.sleep(1.5)
        first.disconnect()
        await third.task
        took_s = virtual_time.now_s()
        second.disconnect()
        await asyncio.wait([second.task])
        return third.outbox.get_nowait()["status"], took_s, backend.queries[1]

    status, took_s, query = virtual_time.run(scenario())
    assert status == 504, "it waited for its place until the deadline"
    assert took_s == pytest.approx(2)
    assert query.deadline_s == pytest.approx(0.5), "what the other one, which got the place, had left"
