"""A provider that speaks the Responses API itself: clients of each dialect, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from r2_serve.config import HostedEngineConfig, ModelConfig, RouterConfig, ServerConfig
from r2_serve.http.api import create_app
from r2_serve.router.router import in_process
from tests.http.test_responses import QUESTION, WEATHER, results_of
from tests.support import responses_provider as provider
from tests.support.hosted_stand import closed_by, routing
from tests.support.served_app import openai_client
from tests.support.upstream import Script, Upstream, running_upstream

PRICES = {"usd_per_mtok_in": Decimal("1"), "usd_per_mtok_out": Decimal("10")}
WEB: Any = {"type": "web_search"}
PATCH: Any = {"type": "custom", "name": "patch"}
NAMES = ("first", "second", "alone", "first-slow", "alone-slow")


@asynccontextmanager
async def talking(
    model: str = "m", script: Any = provider.answer
) -> AsyncIterator[tuple[Upstream, AsyncOpenAI]]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running_upstream())
        upstream.script = script
        hosted = HostedEngineConfig(kind="openai-responses", model=model, base_url=upstream.base_url)
        models = tuple(
            ModelConfig(name=name, engine=hosted, usd_per_mtok_cached_read=Decimal("0.1"), **PRICES)
            for name in NAMES
        )
        router = in_process(RouterConfig(models=models), routing(), closed_by(stack))
        app = create_app(router, ServerConfig())
        yield upstream, await stack.enter_async_context(openai_client(app))


async def streamed(client: AsyncOpenAI, **parameters: Any) -> list[Any]:
    stream = await client.responses.create(**{"model": "alone", "stream": True, **parameters})
    return [event async for event in stream]


async def test_nothing_is_kept_at_the_provider_unless_the_client_asks() -> None:
    async with talking() as (upstream, client):
        await client.responses.create(model="alone", input="hi")
        await client.responses.create(model="alone", input="hi", store=True)
        await client.chat.completions.create(model="alone", messages=[{"role": "user", "content": "hi"}])
    assert [request["store"] for request in upstream.requests] == [False, True, False]
    assert [request["_path"] for request in upstream.requests] == ["/v1/responses"] * 3


async def test_items_and_parameters_pass_as_they_came() -> None:
    async with talking() as (upstream, client):
        response = await client.responses.create(
            model="alone", input="news?", tools=[WEB], truncation="auto", reasoning={"summary": "auto"},
            extra_body={"x_new": 1},
        )  # fmt: skip
        again: Any = [
            {"role": "user", "content": "news?"},
            *response.output,
            {"role": "user", "content": "more"},
        ]
        await client.responses.create(model="alone", input=again, tools=[WEB])
    assert [item.type for item in response.output] == ["reasoning", "web_search_call", "message"]
    assert (response.model, response.service_tier) == ("alone", "flex")
    extra = response.model_extra or {}
    assert extra["x_unknown"] == {"kept": True} and "left_out" not in extra["r2"]
    first, second = upstream.requests
    assert (first["tools"], first["truncation"], first["x_new"]) == ([WEB], "auto", 1)
    sent = [{key: item[key] for key in ("type", "id") if key in item} for item in second["input"]]
    assert sent[1:4] == [
        {"type": "reasoning", "id": "rs_1"},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": "message", "id": "msg_1"},
    ]
    assert second["input"][3]["phase"] == "final_answer"


async def test_stream_passes_the_events_of_the_provider_under_our_name_and_numbers() -> None:
    async with talking() as (_, client):
        events = await streamed(client, input="news?", tools=[WEB])
        async with client.responses.stream(model="alone", input="hi") as stream:
            final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    assert "web_search_call.searching" in kinds and "output_text.annotation.added" in kinds
    ids = {event.response.id for event in events if hasattr(event, "response")}
    assert len(ids) == 1 and ids != {"resp_of_provider"}
    last = events[-1].response
    assert [item.type for item in last.output] == ["web_search_call", "message"]
    assert last.usage.input_tokens_details.cached_tokens == 768
    assert final.output_text == "four"


async def test_conversation_goes_on_here_with_sealed_thoughts_though_the_provider_keeps_nothing() -> None:
    async with talking() as (upstream, client):
        first = await client.responses.create(
            model="alone", input=QUESTION, tools=[WEATHER], reasoning={"effort": "low"}
        )
        second = await client.responses.create(
            model="alone", input=results_of(first), tools=[WEATHER], previous_response_id=first.id
        )
    assert second.output_text == "sun in Oslo and sun in Rome"
    kinds = [item["type"] for item in upstream.requests[-1]["input"]]
    assert kinds == ["message", "reasoning", *["function_call"] * 2, *["function_call_output"] * 2]
    assert upstream.requests[-1]["input"][1]["encrypted_content"] == provider.SEALED
    assert "previous_response_id" not in upstream.requests[-1]


async def test_custom_tools_pass_in_their_own_form() -> None:
    async with talking() as (upstream, client):
        first = await client.responses.create(model="alone", input="patch", tools=[PATCH])
        events = await streamed(client, input="patch", tools=[PATCH])
        call: Any = first.output[0]
        result: Any = [{"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}]
        second = await client.responses.create(
            model="alone", input=result, tools=[PATCH], previous_response_id=first.id
        )
    assert (call.type, call.input) == ("custom_tool_call", "free text")
    assert "response.custom_tool_call_input.delta" in [event.type for event in events]
    assert second.output_text == "done"
    assert upstream.requests[0]["tools"] == [PATCH]


async def test_model_that_seals_no_thoughts_is_asked_once_more_and_then_never_again() -> None:
    async with talking("plain-model") as (upstream, client):
        for _ in range(2):
            response = await client.responses.create(model="alone", input="hi")
            assert response.output_text == "four"
    assert ["include" in request for request in upstream.requests] == [True, False, False]


async def test_chat_client_gets_text_calls_thoughts_and_the_bill() -> None:
    hello: Any = [{"role": "user", "content": QUESTION}]
    tool: Any = {"type": "function", "function": {key: WEATHER[key] for key in ("name", "parameters")}}
    async with talking() as (upstream, client):
        called = await client.chat.completions.create(
            model="alone", messages=hello, tools=[tool], reasoning_effort="low"
        )
        message: Any = called.choices[0].message
        results: Any = [
            {"role": "tool", "tool_call_id": c.id, "content": json.loads(c.function.arguments)["city"]}
            for c in message.tool_calls
        ]
        history: Any = [*hello, message.model_dump(exclude_none=True), *results]
        answered = await client.chat.completions.create(model="alone", messages=history, tools=[tool])
        stream = await client.chat.completions.create(
            model="alone", messages=hello, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert called.choices[0].finish_reason == "tool_calls"
    assert "responses" not in (called.model_extra or {})
    assert answered.choices[0].message.content == "Oslo and Rome"
    assert called.usage and called.usage.prompt_tokens_details
    assert called.usage.prompt_tokens_details.cached_tokens == 768
    r2: Any = (called.model_extra or {})["r2"]
    assert Decimal(r2["cost_usd"]) == (Decimal(1000 - 768) + Decimal("76.8") + 600) / 1_000_000
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "four"
    assert all("responses" not in (chunk.model_extra or {}) for chunk in chunks)
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 1060
    assert [item["type"] for item in upstream.requests[1]["input"]][1] == "reasoning"


async def test_routed_model_uses_it_too() -> None:
    async with talking() as (upstream, client):
        response = await client.responses.create(model="r2", input="two plus two")
        called = await client.responses.create(model="r2", input="patch", tools=[PATCH, WEB])
    assert response.output_text == "four"
    assert all(request["store"] is False for request in upstream.requests)
    assert [item.type for item in called.output] == ["custom_tool_call"]
    assert upstream.requests[-1]["tools"] == [PATCH]
    assert (called.model_extra or {})["r2"]["left_out"] == ["tools.1 (web_search)"]


async def test_what_only_chat_completions_can_say_is_refused_by_name() -> None:
    async with talking() as (upstream, client):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="alone", messages=[{"role": "user", "content": "hi"}], stop=["x"]
            )
    assert refused.value.param == "stop" and not upstream.requests


async def test_failed_response_is_the_error_that_it_reports() -> None:
    error = {"code": "rate_limit_exceeded", "message": "slow down"}
    failed = json.dumps({"status": "failed", "error": error, "output": []}).encode()
    async with talking(script=Script([failed])) as (_, client):
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await client.responses.create(model="alone", input="hi")


async def test_cut_stream_is_an_error_and_no_answer() -> None:
    whole = provider.answer({"model": "m", "input": "hi", "stream": True})
    cut = Script(list(whole.body)[:-1], headers=whole.headers)
    async with talking(script=cut) as (_, client):
        events = await streamed(client, input="hi")
    assert events[-1].type == "response.failed"


@pytest.mark.parametrize("name", ["base_url", "extra_body", "fallbacks"])
async def test_no_parameter_chooses_another_address(name: str) -> None:
    async with talking() as (upstream, client):
        with pytest.raises(openai.BadRequestError, match="not passed on"):
            await client.responses.create(model="alone", input="hi", extra_body={name: "http://x"})
    assert not upstream.requests
