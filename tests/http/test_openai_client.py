"""The real `openai` client, and raw sockets, against uvicorn on a loopback port."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from r2_serve.errors import DeadlineExceeded, InvalidRequest, Overloaded, R2Error, SubtaskFailed
from tests.support.scripted_backend import ScriptedBackend, chat_body, make_app
from tests.support.served_app import openai_client, serving_app

HI: Any = [{"role": "user", "content": "hi"}]


def serving(backend: ScriptedBackend, **server: Any) -> AbstractAsyncContextManager[int]:
    """The port at which `backend` is served."""
    return serving_app(make_app(backend, **server))


def client_of(
    backend: ScriptedBackend, key: str = "any", **server: Any
) -> AbstractAsyncContextManager[AsyncOpenAI]:
    return openai_client(make_app(backend, **server), key)


async def test_openai_client_reads_a_plain_reply() -> None:
    async with client_of(ScriptedBackend()) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="r2", messages=HI, temperature=0, extra_body={"r2": {"trace": True}}
        )
    reply = raw.parse()
    assert reply.choices[0].message.content == "Hello there"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.total_tokens == 37
    assert raw.headers["x-r2-cost-usd"] == "0.0000022"
    extras: Any = (reply.model_extra or {})["r2"]
    assert extras["cost_usd"] == "0.0000022" and extras["trace"]["model"] == "r2"


async def test_reply_can_be_sent_back_unchanged() -> None:
    backend = ScriptedBackend()
    async with client_of(backend) as client:
        reply = await client.chat.completions.create(model="r2", messages=HI)
        again: Any = [*HI, reply.choices[0].message, {"role": "user", "content": "go on"}]
        await client.chat.completions.create(model="r2", messages=again)
        again[1] = reply.choices[0].message.model_dump()
        await client.chat.completions.create(model="r2", messages=again)
    assert [message.content for message in backend.queries[-1].messages] == ["hi", "Hello there", "go on"]


async def test_openai_client_reads_a_stream() -> None:
    async with client_of(ScriptedBackend()) as client:
        stream = await client.chat.completions.create(
            model="r2", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks if c.choices] == ["", "Hello", " there", None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, None, "stop"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7
    assert (chunks[-1].model_extra or {})["r2"]["models"] == ["org/small"]


async def test_stream_context_manager_accumulates() -> None:
    async with (
        client_of(ScriptedBackend()) as client,
        client.chat.completions.stream(model="r2", messages=HI) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there"


async def test_heartbeats_do_not_disturb_the_client() -> None:
    backend = ScriptedBackend(gate=asyncio.Event(), pieces=(), text="late")
    async with client_of(backend, heartbeat_s=0.005) as client:
        stream = await client.chat.completions.create(model="r2", messages=HI, stream=True)
        assert backend.gate
        backend.gate.set()
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "late"


async def test_openai_client_lists_models() -> None:
    async with client_of(ScriptedBackend()) as client:
        assert [model.id async for model in client.models.list()] == ["r2", "org/small"]
        assert (await client.models.retrieve("org/small")).owned_by == "r2"


async def test_errors_have_the_types_of_the_openai_client() -> None:
    expected: list[tuple[R2Error, type[openai.APIStatusError]]] = [
        (InvalidRequest("bad", "r2.policy"), openai.BadRequestError),
        (Overloaded("full"), openai.RateLimitError),
        (SubtaskFailed("subtask 1 failed", 1, "m"), openai.InternalServerError),
        (DeadlineExceeded("late"), openai.InternalServerError),
    ]
    backend = ScriptedBackend(pieces=())
    async with client_of(backend) as client:
        for error, kind in expected:
            for stream in (False, True):
                backend.error = error
                with pytest.raises(kind) as raised:
                    await client.chat.completions.create(model="r2", messages=HI, stream=stream)
                assert (raised.value.status_code, raised.value.code) == (error.status, error.code)
                assert raised.value.request_id


async def test_refusals_have_the_types_of_the_openai_client() -> None:
    async with client_of(ScriptedBackend(), api_keys_env="CLIENT_KEYS", key="key-one") as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nothing", messages=HI)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="r2", messages=HI, seed=2**70)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
    assert refused.value.param == "seed"


async def test_error_in_the_middle_of_a_stream_is_raised() -> None:
    backend = ScriptedBackend(pieces=("one",), error=SubtaskFailed("subtask 1 failed", 1, "m"))
    async with client_of(backend) as client:
        stream = await client.chat.completions.create(model="r2", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="subtask 1 failed"):
            async for _ in stream:
                pass


def _request(body: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: r2\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("stream", [False, True])
async def test_closed_connection_cancels_the_work(stream: bool) -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with serving(backend) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_request(json.dumps(chat_body(stream=stream)).encode()))
        await backend.has_started.wait()
        writer.close()
        async with asyncio.timeout(5):
            await backend.was_cancelled.wait()


async def test_large_body_is_refused_before_it_is_sent() -> None:
    async with serving(ScriptedBackend()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_request(b"{", length=40_000_000))
        async with asyncio.timeout(5):
            answered = await reader.read()
        writer.close()
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answered
