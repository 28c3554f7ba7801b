"""HostedEngine against a real loopback server that misbehaves in every way seen of providers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from r2_serve.config import HostedEngineConfig
from r2_serve.engines import make_engine
from r2_serve.engines.hosted import MAX_MESSAGE_CHARS, HostedEngine
from r2_serve.engines.hosted_replies import StreamReader
from r2_serve.engines.provider_errors import retry_after_s
from r2_serve.errors import (
    AnswerFiltered,
    AnswerWithheld,
    ConfigError,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
    OperatorFault,
)
from r2_serve.types import Delta, Message, Sampling, Usage
from tests.support import virtual_time
from tests.support.engine_calls import engine_call
from tests.support.faults import json_reply
from tests.support.upstream import (
    Script,
    Upstream,
    chunk,
    completion,
    http_chunks,
    running_upstream,
    sse,
    upstream_in_thread,
)
from tests.support.virtual_time import turns

KEY = "sk-hush-0123456789"
MESSAGES = [Message(role="user", content="two plus two")]
ERROR = {"error": {"message": f"bad key {KEY} given", "code": "invalid_api_key"}}
LONG_ERROR = {"error": {"message": "x" * (MAX_MESSAGE_CHARS - 5) + KEY + "y" * 1000}}
NO_DATE = "Wed, 21 Oct 99999999999 07:28:00 GMT"
USAGE_CHUNK = {"id": "x", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-other")


@asynccontextmanager
async def running(
    script: Script, *, stall_s: float = 5.0, **config: Any
) -> AsyncIterator[tuple[Upstream, HostedEngine]]:
    async with running_upstream() as upstream:
        upstream.script = script
        settings = {
            "kind": "openai",
            "model": "m",
            "base_url": upstream.base_url,
            "api_key_env": "TEST_KEY",
            **config,
        }
        engine = HostedEngine(HostedEngineConfig(**settings), stall_s=stall_s)
        try:
            yield upstream, engine
        finally:
            await engine.aclose()


async def collected(engine: HostedEngine, timeout_s: float = 5.0) -> list[Delta]:
    return [delta async for delta in engine.stream(engine_call(MESSAGES, Sampling(), timeout_s=timeout_s))]


FAULTS: dict[str, tuple[Script, type[EngineError], str]] = {
    "error in a 200": (json_reply(ERROR), InvalidReply, "bad key"),
    "error with a status in a 200": (
        json_reply({"error": {"message": "slow down", "code": 429}}),
        NotStarted,
        "slow down",
    ),
    "html": (
        Script(body=[b"<html>502</html>"], headers={"content-type": "text/html"}),
        InvalidReply,
        "not JSON",
    ),
    "empty body": (Script(), InvalidReply, "not JSON"),
    "cut JSON": (Script(body=[json.dumps(completion()).encode()[:60]]), InvalidReply, "not JSON"),
    "cut body": (Script(body=[b'{"choices'], content_length=500), EngineUnavailable, "connection"),
    "a list": (json_reply([1]), InvalidReply, "not a JSON object"),
    "no choices": (json_reply({"id": "x"}), InvalidReply, "choices"),
    "empty choices": (json_reply(completion(choices=[])), InvalidReply, "choices"),
    "null content": (json_reply(completion(message={"content": None})), InvalidReply, "no content"),
    "content of parts": (
        json_reply(completion(message={"content": [{"text": "a"}]})),
        InvalidReply,
        "message.content",
    ),
    "null finish reason": (json_reply(completion(finish_reason=None)), InvalidReply, "finish_reason"),
    "unknown finish reason": (json_reply(completion(finish_reason="tired")), InvalidReply, "tired"),
    "filtered": (
        json_reply(completion(finish_reason="content_filter", message={"content": None})),
        AnswerFiltered,
        "content_filter",
    ),
    "tool calls": (
        json_reply(completion(finish_reason="tool_calls", message={"content": None})),
        AnswerWithheld,
        "tool_calls",
    ),
    "refusal": (
        json_reply(completion(message={"content": None, "refusal": "I will not"})),
        AnswerFiltered,
        "I will not",
    ),
    "400": (json_reply(ERROR, 400), EngineRefused, "bad key [key] given"),
    "400 with half a character": (
        Script(status=400, body=[rb'{"error": "half of \ud83d"}']),
        EngineRefused,
        "half of ?",
    ),
    "401 without JSON": (Script(status=401, body=[KEY.encode()]), OperatorFault, "401"),
    "404": (json_reply(ERROR, 404), OperatorFault, "404"),
    "408": (json_reply(ERROR, 408), NotStarted, "408"),
    "409": (json_reply(ERROR, 409), NotStarted, "409"),
    "429": (json_reply(ERROR, 429), NotStarted, "bad key"),
    "quota by its type": (
        json_reply({"error": {"message": "pay", "type": "insufficient_quota", "code": None}}, 429),
        OperatorFault,
        "pay",
    ),
    "quota in a 200": (
        json_reply({"error": {"message": "pay", "type": "insufficient_quota"}}),
        OperatorFault,
        "pay",
    ),
    "status as a text in a 200": (
        json_reply({"error": {"message": "slow down", "code": "429"}}),
        NotStarted,
        "slow down",
    ),
    "error object of vLLM": (
        json_reply({"object": "error", "message": "not so", "code": 400}),
        EngineRefused,
        "not so",
    ),
    "error of a choice": (
        json_reply({"choices": [{"message": {"content": "fo"}, "error": {"code": 502, "message": "gone"}}]}),
        EngineUnavailable,
        "502: gone",
    ),
    "filtered by Gemini": (
        json_reply(completion(finish_reason="SAFETY", message={"content": None})),
        AnswerFiltered,
        "SAFETY",
    ),
    "image part": (
        json_reply(completion(message={"content": [{"type": "image_url", "image_url": {}}]})),
        InvalidReply,
        "message.content",
    ),
    "quota": (
        json_reply({"error": {"message": "pay", "code": "insufficient_quota"}}, 429),
        OperatorFault,
        "pay",
    ),
    "500": (json_reply(ERROR, 500), EngineUnavailable, "500"),
    "529": (json_reply(ERROR, 529), EngineUnavailable, "529"),
    "redirect": (
        json_reply(ERROR, 307, location="http://127.0.0.1:9/v1/chat/completions"),
        OperatorFault,
        "307",
    ),
    "no content status": (Script(status=204), InvalidReply, "204"),
    "key at the cut": (json_reply(LONG_ERROR, 400), EngineRefused, "xxx"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_faulty_reply_becomes_the_right_error_without_the_key(fault: str) -> None:
    script, kind, text = FAULTS[fault]
    async with running(script) as (_, engine):
        with pytest.raises(EngineError) as caught:
            await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
    assert type(caught.value) is kind
    assert text in caught.value.message
    assert caught.value.message.encode(), "it goes into a trace"
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(engine)
    assert "sk-hush" not in shown
    assert len(caught.value.message) <= MAX_MESSAGE_CHARS


STREAM_FAULTS: dict[str, tuple[list[bytes], type[EngineError], str, str]] = {
    "no finish reason": (sse(chunk("fo"), chunk("ur")), InvalidReply, "ended before", "four"),
    "done without finish reason": (sse(chunk("four"), "[DONE]"), InvalidReply, "ended before", "four"),
    "cut within an event": ([*sse(chunk("four")), b'data: {"choi'], InvalidReply, "ended before", "four"),
    "empty": ([], InvalidReply, "ended before", ""),
    "error event": (sse(chunk("fo"), ERROR), InvalidReply, "bad key", "fo"),
    "overloaded event": (
        sse(chunk("fo"), {"error": {"message": "busy", "code": 503}}),
        EngineUnavailable,
        "busy",
        "fo",
    ),
    "not JSON": (sse(chunk("fo"), "<html>"), InvalidReply, "not JSON", "fo"),
    "html page": ([b"<html>oops</html>\n\n"], InvalidReply, "ended before", ""),
    "filtered": (sse(chunk("fo"), chunk(None, "content_filter")), AnswerFiltered, "content_filter", "fo"),
    "unknown finish reason": (sse(chunk("fo"), chunk(None, "tired")), InvalidReply, "tired", "fo"),
    "quota event": (
        sse(chunk("fo"), {"error": {"message": "pay", "type": "insufficient_quota"}}),
        OperatorFault,
        "pay",
        "fo",
    ),
    "error event of vLLM": (
        sse(chunk("fo"), {"object": "error", "message": "busy", "code": 503}, "[DONE]"),
        EngineUnavailable,
        "503: busy",
        "fo",
    ),
    "error of OpenRouter within a choice": (
        sse(chunk("fo"), {"choices": [{"delta": {}, "error": {"code": 502, "message": "gone"}}]}),
        EngineUnavailable,
        "502: gone",
        "fo",
    ),
    "filtered by Gemini": (sse(chunk("fo"), chunk(None, "SAFETY")), AnswerFiltered, "SAFETY", "fo"),
    "finish reason that never comes": (
        sse(chunk("fo", ""), chunk("ur", "null"), "[DONE]"),
        InvalidReply,
        "ended before",
        "four",
    ),
    "choices of another type": (sse({"choices": "four"}), InvalidReply, "choices", ""),
}


@pytest.mark.parametrize("fault", STREAM_FAULTS)
async def test_faulty_stream_is_never_reported_as_finished(fault: str) -> None:
    body, kind, text, streamed = STREAM_FAULTS[fault]
    deltas: list[Delta] = []
    async with running(Script(body=body, headers={"content-type": "text/event-stream"})) as (_, engine):
        with pytest.raises(EngineError) as caught:
            async for delta in engine.stream(engine_call(MESSAGES, Sampling(), timeout_s=5.0)):
                deltas.append(delta)
    assert type(caught.value) is kind
    assert text in caught.value.message
    assert "sk-hush" not in "".join(traceback.format_exception(caught.value))
    assert "".join(delta.text for delta in deltas) == streamed
    assert all(delta.finish_reason is None for delta in deltas)


async def test_status_of_a_stream_is_mapped_like_that_of_a_whole_reply() -> None:
    async with running(json_reply(ERROR, 429, **{"retry-after": "7"})) as (_, engine):
        with pytest.raises(EngineUnavailable) as caught:
            await collected(engine)
    assert caught.value.retry_after_s == 7.0


async def test_whole_reply_is_read_with_its_usage_and_logprobs() -> None:
    logprobs = {"content": [{"token": "fo", "logprob": -0.5}, {"token": "ur", "logprob": 0}]}
    async with running(json_reply(completion(logprobs=logprobs))) as (upstream, engine):
        reply = await engine.generate(engine_call(MESSAGES, Sampling(logprobs=True), timeout_s=5.0))
    assert (reply.text, reply.finish_reason, reply.logprobs) == ("four", "stop", (-0.5, 0.0))
    assert reply.usage == Usage(prompt_tokens=7, completion_tokens=2)
    assert upstream.requests[0]["logprobs"] is True


async def test_request_holds_what_was_asked_and_nothing_else() -> None:
    sampling = Sampling(
        max_tokens=9, temperature=0.0, top_p=0.5, stop=("x",), seed=3, json_schema={"type": "object"}
    )
    config = {"max_tokens_field": "max_completion_tokens", "extra_body": {"reasoning_effort": "low"}}
    async with running(json_reply(completion()), **config) as (upstream, engine):
        await engine.generate(engine_call(MESSAGES, sampling, timeout_s=5.0))
    request = upstream.requests[0]
    headers, path = request.pop("_headers"), request.pop("_path")
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "openai-organization" not in headers
    assert request == {
        "model": "m",
        "messages": [{"role": "user", "content": "two plus two"}],
        "max_completion_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["x"],
        "seed": 3,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True},
        },
    }


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": False}},
    ],
)
async def test_response_format_goes_to_the_provider_unchanged(wanted: dict[str, Any]) -> None:
    async with running(json_reply(completion())) as (upstream, engine):
        await engine.generate(engine_call(MESSAGES, Sampling(response_format=wanted), timeout_s=5.0))
    assert upstream.requests[0]["response_format"] == wanted


async def test_server_without_a_key_gets_no_key_of_another_provider() -> None:
    async with running(json_reply(completion()), api_key_env=None) as (upstream, engine):
        await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
    assert "authorization" not in upstream.requests[0]["_headers"]


async def test_azure_deployment_is_asked_with_its_own_key_header() -> None:
    async with running_upstream() as upstream:
        upstream.script = json_reply(completion())
        endpoint = upstream.base_url.removesuffix("/v1")
        config = HostedEngineConfig(
            kind="azure", model="dep", base_url=endpoint, api_key_env="TEST_KEY", api_version="2026-01-01"
        )
        engine = make_engine(config)
        assert isinstance(engine, HostedEngine)
        await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
        await engine.aclose()
    assert upstream.requests[0]["_path"] == "/openai/deployments/dep/chat/completions?api-version=2026-01-01"
    assert upstream.requests[0]["_headers"]["api-key"] == KEY


async def test_stream_gives_pieces_then_finish_reason_and_usage() -> None:
    body = sse(chunk(""), chunk("fo"), chunk("ur"), chunk(None, "length"), USAGE_CHUNK, "[DONE]")
    async with running(Script(body=body, is_held=True)) as (upstream, engine):
        deltas = await collected(engine)
    assert [delta.text for delta in deltas] == ["fo", "ur", "", ""]
    assert deltas[-1] == Delta(finish_reason="length", usage=Usage(prompt_tokens=7, completion_tokens=2))
    assert upstream.requests[0]["stream_options"] == {"include_usage": True}


async def test_stream_with_a_finish_reason_is_complete_without_done() -> None:
    async with running(Script(body=sse(chunk("four"), chunk(None, "stop"), USAGE_CHUNK))) as (_, engine):
        assert (await collected(engine))[-1].finish_reason == "stop"


def test_stream_is_read_wherever_its_bytes_are_cut() -> None:
    body = b": keep-alive\r\n\r\n" + b"".join(sse(chunk("é\u2028"), chunk(None, "stop"), "[DONE]")).replace(
        b"\\u00e9", "é".encode()
    )
    reader = StreamReader()
    assert "".join(d.text for i in range(len(body)) for d in reader.feed(body[i : i + 1])) == "é\u2028"
    assert reader.finish() == "stop"


async def test_missing_usage_is_estimated_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with running(json_reply(completion(usage=None))) as (_, engine):
        with caplog.at_level(logging.WARNING, logger="r2_serve"):
            replies = [
                await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0)) for _ in range(2)
            ]
    assert (replies[0].usage, replies[0].is_usage_estimated) == (
        Usage(prompt_tokens=3, completion_tokens=1),
        True,
    )
    assert len(caplog.records) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_slow_drip_ends_at_the_timeout_of_the_call(is_streamed: bool) -> None:
    async def took_s() -> float:
        async with running(Script(body=[b" "] * 1000, gap_s=0.1)) as (_, engine):
            start_s = virtual_time.now_s()
            with pytest.raises(EngineUnavailable, match="in time"):
                await (
                    collected(engine, timeout_s=1)
                    if is_streamed
                    else engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=1))
                )
            return virtual_time.now_s() - start_s

    assert virtual_time.run_with_sockets(took_s()) == pytest.approx(1)


def test_stalled_stream_ends_before_the_timeout_of_the_call() -> None:
    async def took_s() -> float:
        async with running(Script(body=sse(chunk("fo")), is_held=True), stall_s=2) as (upstream, engine):
            start_s = virtual_time.now_s()
            with pytest.raises(EngineUnavailable, match="in time"):
                await collected(engine, timeout_s=30.0)
            await asyncio.wait_for(upstream.hung_up.wait(), 5.0)
            return virtual_time.now_s() - start_s

    assert virtual_time.run_with_sockets(took_s()) == pytest.approx(2)


def test_time_of_the_consumer_does_not_count_for_the_provider() -> None:
    """It writes after 40, 80 and 120 s. Whoever reads takes 30 s over each piece, and so waits for 40, 10 and
    10 s of the 70 allowed."""

    async def read() -> str:
        script = Script(
            body=sse(chunk("fo"), chunk("ur"), chunk(None, "stop")),
            gap_s=40,
            headers={"content-type": "text/event-stream"},
        )
        async with running(script, stall_s=15) as (_, engine):
            text = ""
            async for delta in engine.stream(engine_call(MESSAGES, Sampling(), timeout_s=70)):
                text += delta.text
                await asyncio.sleep(30)
            return text

    assert virtual_time.run_with_sockets(read()) == "four"


async def test_closing_a_stream_closes_its_connection() -> None:
    async with running(Script(body=sse(chunk("fo")), is_held=True)) as (upstream, engine):
        async with aclosing(engine.stream(engine_call(MESSAGES, Sampling()))) as deltas:
            assert (await anext(deltas)).text == "fo"
        await asyncio.wait_for(upstream.hung_up.wait(), 5.0)


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with running(Script(body=[b"{"], is_held=True)) as (upstream, engine):
        call = asyncio.create_task(engine.generate(engine_call(MESSAGES, Sampling())))
        await asyncio.wait_for(upstream.asked.wait(), 5.0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(upstream.hung_up.wait(), 5.0)


@pytest.mark.parametrize("num_more", [0, 1, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_call_cancelled_at_any_moment_leaves_nothing_in_the_client(
    is_streamed: bool, num_more: int
) -> None:
    """Once and, while it still cleans up, `num_more` times again."""
    stream = Script(
        http_chunks([*sse(chunk("fo"), chunk("ur", "stop"), USAGE_CHUNK, "[DONE]")]),
        headers={"transfer-encoding": "chunked"},
    )
    async with running(stream if is_streamed else json_reply(completion())) as (upstream, engine):
        connector = (await engine._client()).connector
        assert connector is not None
        num_turns = num_answered = 0
        while num_answered < 3:
            call = asyncio.create_task(
                collected(engine)
                if is_streamed
                else engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
            )
            await turns(num_turns)
            call.cancel()
            for _ in range(num_more):
                await turns(1)
                call.cancel()
            await asyncio.wait([call])
            assert not connector._acquired and not connector._waiters, f"after {num_turns} turns"
            num_answered += not call.cancelled()
            num_turns += 1
    assert num_turns > 10
    assert upstream.num_open == 0


async def test_closed_port_is_unavailable() -> None:
    async with running_upstream() as upstream:
        url = upstream.base_url
    engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=url, api_key_env="TEST_KEY"))
    with pytest.raises(NotStarted, match="cannot reach"):
        await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
    await engine.aclose()


def test_engine_outlives_its_event_loop_and_leaves_nothing_open(capfd: pytest.CaptureFixture[str]) -> None:
    """An evaluation ends its event loop without closing connections; the next loop opens new ones."""
    keeping = {"connection": "keep-alive"}
    with upstream_in_thread() as upstream:
        upstream.script = Script(
            [json.dumps(completion()).encode()],
            200,
            keeping,
            content_length=len(json.dumps(completion())),
            is_held=True,
        )
        engine = HostedEngine(
            HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url, api_key_env="TEST_KEY")
        )
        assert [
            asyncio.run(engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))).text
            for _ in range(2)
        ] == [
            "four",
            "four",
        ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("variable", "is_asked"), [("HTTP_PROXY", True), ("NO_PROXY", False)])
async def test_proxy_from_the_environment_is_used(
    variable: str, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_upstream() as proxy:
        proxy.script = json_reply(completion())
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv(
            variable, "provider.invalid" if variable == "NO_PROXY" else proxy.base_url.removesuffix("/v1")
        )
        engine = HostedEngine(
            HostedEngineConfig(
                kind="openai", model="m", base_url="http://provider.invalid/v1", api_key_env="TEST_KEY"
            )
        )
        with contextlib.suppress(EngineUnavailable):
            await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
        await engine.aclose()
    assert [request["_path"] for request in proxy.requests] == [
        "http://provider.invalid/v1/chat/completions"
    ] * is_asked


async def test_failed_call_is_not_retried() -> None:
    async with running(json_reply(ERROR, 500)) as (upstream, engine):
        with pytest.raises(EngineUnavailable):
            await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=5.0))
    assert len(upstream.requests) == 1


async def test_adapter_is_refused() -> None:
    async with running(json_reply(completion())) as (upstream, engine):
        with pytest.raises(EngineRefused, match="adapter 'a'"):
            await engine.generate(engine_call(MESSAGES, Sampling(), adapter="a"))
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"api_key_env": "NOT_SET"}, "NOT_SET"),
        ({"kind": "azure"}, "api_version"),
        ({"api_key_env": "BROKEN"}, "BROKEN"),
    ],
)
def test_wrong_configuration_is_named(
    changes: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "sk\n1")
    with pytest.raises(ConfigError, match=text):
        HostedEngine(
            HostedEngineConfig(**{"kind": "openai", "model": "m", "api_key_env": "TEST_KEY", **changes})
        )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("2.5", 2.5),
        ("-3", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        (None, None),
        ("", None),
        (NO_DATE, None),
    ],
)
def test_retry_after_in_seconds_is_read(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header) == expected


def test_retry_after_as_a_date_is_read() -> None:
    later = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert later is not None
    assert 55 < later <= 60


def test_retry_after_as_a_date_counts_from_the_date_of_the_reply() -> None:
    assert retry_after_s("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT") == 30.0
