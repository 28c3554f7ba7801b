"""The client of an OpenAI-compatible endpoint, against scripted bodies."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal

import httpx
import pytest

from r2_serve.client import (
    RequestFailed,
    Tokens,
    ask,
    ask_streamed,
    chat_body,
    endpoint_url,
    list_models,
    question,
)
from tests.support.load_endpoint import chunk, event

BODY = chat_body(question("r2", "2 + 3?"))


def answering(status: int, *pieces: bytes) -> httpx.AsyncClient:
    """A client whose every request is answered with `pieces`."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body()))
    return httpx.AsyncClient(transport=transport, base_url="http://r2/v1/")


async def streamed(*pieces: bytes, status: int = 200) -> str:
    return "".join([piece.text async for piece in ask_streamed(answering(status, *pieces), BODY)])


async def test_plain_reply_gives_text_tokens_and_what_r2_adds() -> None:
    reply = {
        "choices": [{"message": {"content": "5"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": None},
        "r2": {"cost_usd": "0.001", "subtasks": 2, "unknown": 1},
    }
    got = await ask(answering(200, json.dumps(reply).encode()), BODY)
    assert (got.text, got.usage) == ("5", Tokens(prompt_tokens=7))
    assert got.r2 is not None and (got.r2.cost_usd, got.r2.subtasks, got.r2.trace) == (
        Decimal("0.001"),
        2,
        None,
    )


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk("a"), chunk("b"), DONE],
        [b"\xef\xbb\xbf", chunk("a").replace(b"data: ", b"data:"), chunk("b"), DONE],
        [chunk("a").replace(b"\n\n", b"\r\r"), b": keep-alive\n\n", chunk("b"), DONE],
        [event(None), chunk("a"), event({"choices": None, "usage": {"prompt_tokens": 1}}), chunk("b"), DONE],
        [event({"choices": [{"delta": {"content": "ab"}}], "error": None}), DONE],
        [chunk("a"), event({"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]})],
        [event({"choices": [{"finish_reason": ""}]}), b"data:\n\n", chunk("ab"), b"data: [DONE] \n\n"],
        [chunk("ab"), event({"choices": [{"delta": {}}], "usage": {"prompt_tokens": -1}}), DONE],
        [b'data: {"choices":\ndata: [{"delta": {"content": "ab"}}]}\n\n', DONE],
    ],
)
async def test_streams_that_the_router_reads_are_read_by_the_client_too(pieces: list[bytes]) -> None:
    assert await streamed(*pieces) == "ab"


async def test_line_separators_inside_a_text_do_not_end_an_event() -> None:
    raw = 'data: {"choices": [{"delta": {"content": "a\u2028b\u2029c\u0085d"}}]}\n\n'.encode()
    assert await streamed(raw, DONE) == "a\u2028b\u2029c\u0085d"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([chunk("a")], "cut off: the stream ended without"),
        ([event({"choices": [{"delta": None}]}), DONE], "not a chat completion: choices.0.delta"),
        ([event({"no": "choices"}), DONE], "not a chat completion: an event has neither"),
        ([b"data: {broken\n\n", DONE], "not a chat completion: the body: Invalid JSON"),
        (
            [event({"error": {"message": "2 failed", "code": "subtask_failed"}})],
            "200 subtask_failed: 2 failed",
        ),
        ([event({"error": "no"})], "200: "),
        ([b"data: \xff\n\n"], "not a chat completion: the stream is not UTF-8"),
    ],
)
async def test_stream_that_is_no_whole_answer_fails_with_its_reason(
    pieces: list[bytes], message: str
) -> None:
    with pytest.raises(RequestFailed) as caught:
        await streamed(*pieces)
    assert caught.value.message.startswith(message) and caught.value.http_status == 200
    assert not caught.value.is_unworked


async def test_refusal_says_status_code_and_whether_a_model_can_have_been_called() -> None:
    refusal = json.dumps({"error": {"message": "full", "code": "overloaded", "type": "rate_limit"}}).encode()
    for status, is_unworked in ((429, True), (502, False)):
        for is_streamed in (False, True):
            with pytest.raises(RequestFailed, match=rf"^{status} overloaded: full$") as caught:
                await (
                    streamed(refusal, status=status) if is_streamed else ask(answering(status, refusal), BODY)
                )
            assert caught.value.is_unworked == is_unworked
    with pytest.raises(RequestFailed, match=r"^502: b'<html>'$"):
        await ask(answering(502, b"<html>"), BODY)


async def test_lost_connection_is_a_failure_of_its_own_kind() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused") if request.method == "GET" else httpx.ReadError("reset")

    http = httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://r2/v1/")
    with pytest.raises(RequestFailed, match=r"^ConnectError: refused$") as caught:
        await list_models(http)
    assert caught.value.is_unworked and caught.value.http_status is None
    with pytest.raises(RequestFailed, match=r"^ReadError: reset$") as caught:
        await ask(http, BODY)
    assert not caught.value.is_unworked


def test_body_for_another_endpoint_holds_nothing_of_r2() -> None:
    body = chat_body(question("gpt", "hi"), is_streamed=True, has_trace=False)
    assert set(body) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("written", ["127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"])
def test_address_of_an_endpoint_may_lack_protocol_and_path(written: str) -> None:
    assert endpoint_url(written) == "http://127.0.0.1:8000/v1/"


def test_path_of_an_endpoint_stays_as_it_is_written() -> None:
    assert endpoint_url("https://proxy.example/openai/v2") == "https://proxy.example/openai/v2/"
