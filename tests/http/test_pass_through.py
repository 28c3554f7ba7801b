"""A hosted pool model takes what its provider takes; the real `openai` client drives it over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from r2_serve.config import HostedEngineConfig, RouterConfig, ServerConfig
from r2_serve.errors import EngineRefused
from r2_serve.http.api import create_app
from r2_serve.router.router import Router as ServedRouter
from r2_serve.types import Message, Sampling
from tests.http.test_api import error_of
from tests.support import agent_provider as provider
from tests.support.hosted_stand import Stand, standing
from tests.support.in_process import Router, query
from tests.support.scripted_backend import chat_body
from tests.support.served_app import openai_client
from tests.support.upstream import Script, chunk, sse

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PLAIN: Any = [{"role": "user", "content": "hi"}]
ASKED: Any = [{"role": "user", "content": "How is the weather in Oslo and in Rome?", "name": "ann"}]


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Stand, AsyncOpenAI]]:
    async with standing(provider.answer) as stand, openai_client(stand.app) as client:
        yield stand, client


def results_of(message: Any) -> list[dict[str, Any]]:
    """What the client's tools say to the calls of `message`."""
    return [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": "sun in " + json.loads(call.function.arguments)["city"],
        }
        for call in message.tool_calls
    ]


async def test_tool_loop_of_two_turns_works() -> None:
    async with talking() as (stand, client):
        first = await client.chat.completions.create(
            model="alone", messages=ASKED, tools=[TOOL], tool_choice="auto", parallel_tool_calls=True
        )
        message: Any = first.choices[0].message
        history = [*ASKED, message, *results_of(message)]
        second = await client.chat.completions.create(model="alone", messages=history, tools=[TOOL])
    assert first.choices[0].finish_reason == "tool_calls"
    assert [call.id for call in message.tool_calls] == ["call_1", "call_2"]
    assert second.choices[0].message.content == "sun in Oslo and sun in Rome"
    assert second.choices[0].message.annotations
    one, two = stand.upstream.requests
    assert (one["tools"], one["tool_choice"], one["parallel_tool_calls"]) == ([TOOL], "auto", True)
    assert one["messages"] == ASKED
    assert two["messages"][1]["tool_calls"] == [provider.call(1, "Oslo"), provider.call(2, "Rome")]
    assert [m.get("tool_call_id") for m in two["messages"]] == [None, None, "call_1", "call_2"]


async def test_streamed_tool_calls_come_piece_by_piece_and_in_order() -> None:
    async with talking() as (_, client):
        stream = await client.chat.completions.create(
            model="alone", messages=ASKED, tools=[TOOL], stream=True
        )
        chunks = [chunk async for chunk in stream]
        async with client.chat.completions.stream(model="alone", messages=ASKED, tools=[TOOL]) as events:
            whole: Any = (await events.get_final_completion()).choices[0]
        history = [*ASKED, whole.message, *results_of(whole.message)]
        again = await client.chat.completions.create(
            model="alone", messages=history, tools=[TOOL], stream=True
        )
        answer = [chunk async for chunk in again]
    pieces: Any = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert [(piece.index, piece.id) for piece in pieces] == [
        (0, "call_1"),
        (0, None),
        (1, "call_2"),
        (1, None),
    ]
    assert "".join(piece.function.arguments for piece in pieces[2:]) == '{"city": "Rome"}'
    assert [c.choices[0].finish_reason for c in chunks][-2:] == [None, "tool_calls"]
    assert (chunks[-1].model_extra or {})["r2"]["models"] == ["alone"]
    assert {(c.model, c.system_fingerprint, c.service_tier) for c in chunks} == {("alone", "fp_1", "flex")}
    assert [call.function.arguments for call in whole.message.tool_calls] == [
        '{"city": "Oslo"}',
        '{"city": "Rome"}',
    ]
    assert "".join(c.choices[0].delta.content or "" for c in answer) == "sun in Oslo and sun in Rome"


async def test_images_files_and_cache_marks_reach_the_provider_as_they_came() -> None:
    parts: Any = [
        {"type": "text", "text": "Add these.", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
    ]
    async with talking() as (stand, client):
        reply = await client.chat.completions.create(
            model="alone", messages=[{"role": "user", "content": parts}]
        )
    assert reply.choices[0].message.content == "four"
    assert stand.upstream.requests[0]["messages"] == [{"role": "user", "content": parts}]
    assert stand.traces[0].query == "Add these."


PASSED_ON: dict[str, Any] = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 1,
    "reasoning_effort": "low",
    "verbosity": "low",
    "service_tier": "flex",
    "store": False,
    "prompt_cache_key": "k",
    "logit_bias": {"17": -100},
    "prediction": {"type": "content", "content": "four"},
    "metadata": {"a": "b"},
    "user": "u",
    "modalities": ["text"],
}


@pytest.mark.parametrize("stream", [False, True])
async def test_parameters_reach_the_provider_and_its_reply_the_client(stream: bool) -> None:
    unknown = {"top_k": 5, "chat_template_kwargs": {"enable_thinking": True}}
    options: Any = {"stream_options": {"include_usage": True}} if stream else {}
    async with talking() as (stand, client):
        came = await client.chat.completions.create(
            model="alone", messages=ASKED, stream=stream, extra_body=unknown, **PASSED_ON, **options
        )
        choices = await _choices_of(came) if stream else came.choices
        usage = choices.pop().usage if stream else came.usage
    (request,) = stand.upstream.requests
    assert {name: request[name] for name in [*PASSED_ON, *unknown]} == {**PASSED_ON, **unknown}
    assert {choice.index for choice in choices} == {0, 1}
    for index in (0, 1):
        own = [choice for choice in choices if choice.index == index]
        texts = [choice.delta if stream else choice.message for choice in own]
        assert "".join(text.content or "" for text in texts) == "four"
        assert "".join(getattr(text, "reasoning_content", None) or "" for text in texts) == "two and two"
        assert own[-1].finish_reason == "stop"
        assert own[0].logprobs.content[0].top_logprobs[0].token == "five"
    assert usage.model_dump(exclude_none=True).items() >= provider.USAGE.items()


async def _choices_of(stream: Any) -> list[Any]:
    """The choices of all chunks in order, and the chunk of usage last."""
    chunks = [chunk async for chunk in stream]
    return [*(choice for chunk in chunks for choice in chunk.choices), chunks[-1]]


@pytest.mark.parametrize("stream", [False, True])
async def test_ledger_books_cached_and_reasoning_tokens_as_the_provider_bills_them(stream: bool) -> None:
    async with standing(provider.answer) as stand:
        reply = await stand.ask(stream=stream, model="alone")
    (trace,) = stand.traces
    bill = ((1000 - 768) * Decimal("0.15") + 768 * Decimal("0.075") + 60 * Decimal("0.6")) / 10**6
    assert trace.cost_usd == bill
    assert reply.r2 is not None and Decimal(reply.r2["cost_usd"]) == bill
    usage = trace.calls[0].usage
    assert (usage.cached_read_tokens, usage.reasoning_tokens) == (768, 40)
    assert reply.usage == provider.USAGE


@pytest.mark.parametrize("asked", [None, 7])
async def test_hosted_model_gets_no_limit_unless_one_is_asked(asked: int | None) -> None:
    async with talking() as (stand, client):
        limit: Any = {} if asked is None else {"max_completion_tokens": asked}
        await client.chat.completions.create(model="alone", messages=PLAIN, **limit)
        assert stand.upstream.requests[0].get("max_tokens") == asked


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_is_the_answer_of_the_model_and_asks_no_other(stream: bool) -> None:
    async with standing(provider.answer) as stand:
        reply = await stand.ask(stream=stream, model="first", text="something forbidden")
        assert (reply.status, reply.text or "", reply.finish_reasons) == (200, "", ["stop"])
        assert (len(stand.upstream.requests), len(stand.other.requests)) == (1, 0)
        ((call,),) = (trace.calls for trace in stand.traces)
    assert (call.outcome, call.usage.prompt_tokens) == ("ok", 1000)


@pytest.mark.parametrize("name", ["api_base", "api_key", "extra_headers", "models", "fallbacks"])
async def test_parameter_that_names_another_address_key_or_model_is_not_passed_on(name: str) -> None:
    async with standing(provider.answer) as stand:
        body = {"model": "alone", "messages": PLAIN, name: ["http://x"]}
        response = await stand.client.post("/v1/chat/completions", json=body)
        assert (response.status_code, error_of(response)["param"]) == (400, name)
        assert not stand.upstream.requests


async def test_stream_that_fails_before_its_first_word_is_asked_for_again() -> None:
    begun = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}

    def script(request: dict[str, Any]) -> Script:
        is_first = len(stand.upstream.requests) == 1
        events = [begun] if is_first else [begun, chunk("four"), chunk(None, "stop"), "[DONE]"]
        return Script(sse(*events), headers={"content-type": "text/event-stream"})

    async with standing(script) as stand:
        reply = await stand.ask(stream=True, model="alone")
    assert (reply.text, reply.finish_reasons, len(stand.upstream.requests)) == ("four", ["stop"], 2)


async def test_stream_is_whole_only_once_every_choice_is_finished() -> None:
    def script(request: dict[str, Any]) -> Script:
        others = {"choices": [{"index": 1, "delta": {"content": "five"}, "finish_reason": None}]}
        return Script(
            sse(chunk("four"), others, chunk(None, "stop")), headers={"content-type": "text/event-stream"}
        )

    async with standing(script) as stand:
        reply = await stand.ask(stream=True, model="alone")
    assert reply.error is not None and not reply.has_done


@pytest.mark.parametrize("content", [None, 5, [], [{"text": "x"}], [{"type": "text"}], ["x"]])
async def test_content_that_no_provider_takes_is_refused_by_name(content: Any) -> None:
    async with standing(provider.answer) as stand:
        body = {"model": "alone", "messages": [{"role": "user", "content": content}]}
        response = await stand.client.post("/v1/chat/completions", json=body)
        if content is None:
            assert response.status_code == 200, "the provider decides"
            return
    assert error_of(response)["param"].startswith("messages.0.content")


@pytest.mark.parametrize(
    ("asked", "is_answered"),
    [
        ({}, True),
        ({"sampling": Sampling(forwarded={"user": "u"})}, True),
        ({"sampling": Sampling(forwarded={"tools": [TOOL]})}, False),
        ({"messages": (Message(role="tool", content="x", more={"tool_call_id": "1"}),)}, False),
        ({"messages": (Message(role="user", content=({"type": "image_url"},)),)}, False),
    ],
)
async def test_local_fallback_is_asked_for_plain_text_alone(asked: Any, is_answered: bool) -> None:
    hosted = HostedEngineConfig(kind="openai", model="m")
    cards = {"hosted": {"engine": hosted, "fallbacks": ("small",)}}
    router = Router(cards=cards, hosted=[EngineRefused("not today")], small=["fine"])
    if is_answered:
        assert (await router.pipeline.answer(query(model="hosted", **asked))).text == "fine"
    else:
        with pytest.raises(EngineRefused, match="not today"):
            await router.pipeline.answer(query(model="hosted", **asked))
    assert len(router.engines["small"].calls) == is_answered


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_k": 5}, "top_k"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_local_model_refuses_what_it_cannot_do_by_parameter_and_model(
    parameters: Any, param: str, stream: bool
) -> None:
    body = chat_body(**{"model": "small", "stream": stream, **parameters})
    router, response = await asked_of_local_model(body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert "model 'small'" in error_of(response)["message"]
    assert not router.engines["small"].calls


async def test_local_model_takes_parameters_that_ask_for_nothing() -> None:
    nothing = {"n": 1, "tools": [], "tool_choice": "none", "store": False, "user": "u", "logit_bias": {}}
    message = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None}
    messages = [message, {"role": "user", "content": "hi", "name": "ann"}]
    router, response = await asked_of_local_model(chat_body(model="small", messages=messages, **nothing))
    assert response.status_code == 200
    assert len(router.engines["small"].calls) == 1


async def test_misspelt_parameter_of_a_local_model_gets_a_suggestion() -> None:
    _, response = await asked_of_local_model(chat_body(model="small", temprature=0.5))
    assert error_of(response)["message"] == (
        "temprature: model 'small' does not read temprature; did you mean temperature?"
    )


async def test_refusal_names_the_models_that_could_answer() -> None:
    hosted = HostedEngineConfig(kind="openai", model="m")
    _, response = await asked_of_local_model(
        chat_body(model="small", tools=[TOOL]), {"hosted": {"engine": hosted}}
    )
    assert error_of(response)["message"] == (
        "tools: model 'small' is not capable of tools; ask one of ['hosted']"
    )


async def asked_of_local_model(body: Any, cards: Any = None) -> tuple[Router, Any]:
    """The reply to `body` over HTTP, where the model `small` runs locally."""
    names = ["small", "large", "decomposer", "allocator", *(cards or {})]
    router = Router(cards=cards or {}, **{name: ["fine"] for name in names})
    configs = [member.config for member in router.pipeline.pool.values()]
    served = ServedRouter(RouterConfig(models=tuple(configs)), lambda _: router.pipeline)
    served.route_by(router.pipeline.routing)
    app = create_app(served, ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        return router, await client.post("/v1/chat/completions", json=body)


async def test_refusal_for_cost_names_the_limit_that_binds() -> None:
    async with standing(provider.answer, max_cost_usd=Decimal("0.000001")) as stand:
        body = {"model": "alone", "messages": [{"role": "user", "content": "hi"}]}
        by_operator = await stand.client.post("/v1/chat/completions", json=body)
        own = {"max_cost_usd": "0.0000001"}
        by_client = await stand.client.post("/v1/chat/completions", json={**body, "r2": own})
    assert "raise the operator's limits.max_cost_usd" in error_of(by_operator)["message"]
    assert "raise r2.max_cost_usd" in error_of(by_client)["message"]


async def test_virtual_model_lists_what_it_takes_itself() -> None:
    async with standing(provider.answer) as stand:
        listed = (await stand.client.get("/v1/models")).json()["data"]
    able = {model["id"]: model["r2"]["capabilities"] for model in listed}
    assert "embeddings" in able["alone"] and "embeddings" not in able["r2"]
    assert "completions" in able["r2"]


async def test_context_that_is_not_known_is_not_listed_as_a_number() -> None:
    async with standing(provider.answer) as stand:
        listed = (await stand.client.get("/v1/models/alone")).json()
    assert listed["r2"]["context_tokens"] is None
