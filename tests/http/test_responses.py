"""POST /v1/responses over chat models; the real `openai` client drives it over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from r2_serve.errors import EngineUnavailable
from tests.dialects.test_responses import CODEX, user
from tests.support import agent_provider as provider
from tests.support.hosted_stand import Stand, standing
from tests.support.scripted_backend import ScriptedBackend, make_app
from tests.support.served_app import openai_client
from tests.support.upstream import Script, chunk, completion, sse

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
QUESTION = "How is the weather in Oslo and in Rome?"


@asynccontextmanager
async def talking(script: Any = provider.answer) -> AsyncIterator[tuple[Stand, AsyncOpenAI]]:
    async with standing(script) as stand, openai_client(stand.app) as client:
        yield stand, client


def results_of(response: Any) -> list[Any]:
    """What the client's tools say to the calls of `response`."""
    return [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": "sun in " + json.loads(call.arguments)["city"],
        }
        for call in response.output
        if call.type == "function_call"
    ]


async def streamed(client: AsyncOpenAI, **parameters: Any) -> list[Any]:
    stream = await client.responses.create(**{"model": "alone", "stream": True, **parameters})
    return [event async for event in stream]


async def test_plain_response_has_text_usage_and_price() -> None:
    async with talking() as (stand, client):
        response = await client.responses.create(
            model="alone", instructions="be short", input="two and two?", temperature=0, max_output_tokens=50
        )
    assert (response.output_text, response.status, response.model) == ("four", "completed", "alone")
    assert response.usage is not None and response.usage.input_tokens_details.cached_tokens == 768
    assert response.usage.output_tokens_details.reasoning_tokens == 40
    assert (response.model_extra or {})["r2"]["models"] == ["alone"]
    (sent,) = stand.upstream.requests
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert (sent["temperature"], sent["max_tokens"]) == (0, 50)
    assert "r2" not in sent and "store" not in sent


async def test_tool_loop_goes_on_from_the_previous_response() -> None:
    async with talking() as (stand, client):
        first = await client.responses.create(model="alone", input=QUESTION, tools=[WEATHER])
        second = await client.responses.create(
            model="alone", input=results_of(first), tools=[WEATHER], previous_response_id=first.id
        )
        third = await client.responses.create(
            model="alone", input="thanks", previous_response_id=second.id, instructions="be kind"
        )
    assert [call.name for call in first.output if call.type == "function_call"] == ["weather"] * 2
    assert second.output_text == "sun in Oslo and sun in Rome"
    assert second.previous_response_id == first.id
    one, two, three = stand.upstream.requests
    function = {key: WEATHER[key] for key in ("name", "parameters", "strict")}
    assert one["tools"] == [{"type": "function", "function": function}]
    assert two["messages"][1]["tool_calls"] == [provider.call(1, "Oslo"), provider.call(2, "Rome")]
    assert [m.get("tool_call_id") for m in two["messages"]] == [None, None, "call_1", "call_2"]
    assert [m["role"] for m in three["messages"]] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "user",
    ]  # fmt: skip
    assert third.id not in (first.id, second.id)


async def test_stream_has_typed_events_in_order() -> None:
    async with talking() as (_, client):
        events = await streamed(client, input="hi", reasoning={"effort": "low"})
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    last = events[-1].response
    assert [item.type for item in last.output] == ["reasoning", "message"]
    assert last.output_text == "four" and last.usage.total_tokens == 1060


async def test_streamed_tool_calls_have_whole_arguments_at_their_end() -> None:
    async with talking() as (_, client):
        events = await streamed(client, input=QUESTION, tools=[WEATHER], parallel_tool_calls=True)
    done = {e.item_id: e.arguments for e in events if e.type == "response.function_call_arguments.done"}
    pieces = dict.fromkeys(done, "")
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            pieces[event.item_id] += event.delta
    assert pieces == done
    assert [json.loads(text)["city"] for text in done.values()] == ["Oslo", "Rome"]
    items = [e.item for e in events if e.type == "response.output_item.done"]
    assert [(item.call_id, item.status) for item in items] == [
        ("call_1", "completed"),
        ("call_2", "completed"),
    ]


async def test_sdk_accumulates_a_stream_of_text_and_tool_calls() -> None:
    async with talking() as (_, client):
        async with client.responses.stream(model="alone", input=QUESTION, tools=[WEATHER]) as stream:
            called = await stream.get_final_response()
        async with client.responses.stream(
            model="alone", input=results_of(called), previous_response_id=called.id, tools=[WEATHER]
        ) as stream:
            final = await stream.get_final_response()
    assert final.output_text == "sun in Oslo and sun in Rome"


class Place(BaseModel):
    city: str


async def test_structured_output_is_parsed_by_the_sdk() -> None:
    reply = completion(message={"role": "assistant", "content": '{"city": "Oslo"}'})
    async with talking(Script([json.dumps(reply).encode()])) as (stand, client):
        response = await client.responses.parse(model="alone", input="where?", text_format=Place)
    assert response.output_parsed == Place(city="Oslo")
    wanted = stand.upstream.requests[0]["response_format"]
    assert wanted["type"] == "json_schema" and wanted["json_schema"]["name"] == "Place"


async def test_refusal_is_a_part_of_its_own() -> None:
    async with talking() as (_, client):
        response = await client.responses.create(model="alone", input="forbidden")
        events = await streamed(client, input="forbidden")
    part: Any = response.output[0]
    assert (part.content[0].type, part.content[0].refusal) == ("refusal", "I will not")
    kinds = [event.type for event in events]
    assert "response.refusal.delta" in kinds and "response.refusal.done" in kinds


async def test_reply_cut_at_its_limit_is_incomplete() -> None:
    reply = json.dumps(completion(finish_reason="length")).encode()
    async with talking(Script([reply])) as (_, client):
        response = await client.responses.create(model="alone", input="hi", max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"
    message: Any = response.output[0]
    assert message.status == "incomplete"
    cut = Script(
        sse(chunk("fo"), chunk(None, "length"), "[DONE]"), headers={"content-type": "text/event-stream"}
    )
    async with talking(cut) as (_, client):
        events = await streamed(client, input="hi")
    assert events[-1].type == "response.incomplete"


async def test_routed_model_answers_and_remembers() -> None:
    backend = ScriptedBackend()
    async with openai_client(make_app(backend)) as client:
        first = await client.responses.create(model="r2", input="hi")
        async with client.responses.stream(
            model="r2", input="go on", previous_response_id=first.id
        ) as stream:
            second = await stream.get_final_response()
    assert first.output_text == second.output_text == "Hello there"
    assert [message.text for message in backend.queries[-1].messages] == ["hi", "Hello there", "go on"]


async def test_cache_key_names_the_session_of_all_later_turns() -> None:
    backend = ScriptedBackend()
    async with openai_client(make_app(backend)) as client:
        first = await client.responses.create(model="r2", input="hi", prompt_cache_key="chat-7")
        await client.responses.create(model="r2", input="go on", previous_response_id=first.id)
    assert [query.session for query in backend.queries] == ["chat-7", "chat-7"]


async def test_responses_can_be_read_listed_and_deleted() -> None:
    async with talking() as (_, client):
        first = await client.responses.create(model="alone", input="hi", metadata={"a": "b"})
        second = await client.responses.create(model="alone", input="again", previous_response_id=first.id)
        read = await client.responses.retrieve(first.id)
        listed: Any = [item async for item in client.responses.input_items.list(second.id, limit=1)]
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError) as forgotten:
            await client.responses.create(model="alone", input="more", previous_response_id=second.id)
        with pytest.raises(openai.BadRequestError) as ended:
            await client.responses.cancel(second.id)
    assert (read.output_text, read.metadata, read.usage) == ("four", {"a": "b"}, first.usage)
    assert [item.type for item in listed] == ["message"] * 3
    assert listed[0].content == "again"
    assert forgotten.value.code == "previous_response_not_found"
    assert ended.value.code == "response_not_cancellable"


async def test_response_that_is_not_stored_is_not_kept() -> None:
    async with talking() as (_, client):
        response = await client.responses.create(model="alone", input="hi", store=False)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.retrieve(response.id)
    assert (caught.value.code, caught.value.param) == ("response_not_found", "response_id")
    assert (response.model_extra or {})["store"] is False


async def test_no_key_sees_the_responses_of_another() -> None:
    app = make_app(ScriptedBackend(), api_keys_env="CLIENT_KEYS")
    async with openai_client(app, "key-one") as one, openai_client(app, "key-two") as two:
        mine = await one.responses.create(model="r2", input="hi")
        for reading in (two.responses.retrieve, two.responses.delete, two.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await reading(mine.id)
        with pytest.raises(openai.NotFoundError):
            await two.responses.input_items.list(mine.id)
        with pytest.raises(openai.BadRequestError, match="is kept for this key"):
            await two.responses.create(model="r2", input="go on", previous_response_id=mine.id)
        reference: Any = [{"type": "item_reference", "id": mine.output[0].id}]
        with pytest.raises(openai.BadRequestError, match="is kept for this key"):
            await two.responses.create(model="r2", input=reference)
        await one.responses.create(model="r2", input="go on", previous_response_id=mine.id)


async def test_reference_to_a_kept_item_stands_for_it() -> None:
    backend = ScriptedBackend()
    async with openai_client(make_app(backend)) as client:
        first = await client.responses.create(model="r2", input="hi")
        again: Any = [
            {"role": "user", "content": "hi"},
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": [{"type": "input_text", "text": "go on"}]},
        ]
        await client.responses.create(model="r2", input=again)
    assert [message.text for message in backend.queries[-1].messages] == ["hi", "Hello there", "go on"]


async def test_output_of_a_response_can_be_sent_back_as_input() -> None:
    async with talking() as (stand, client):
        first = await client.responses.create(
            model="alone", input=QUESTION, tools=[WEATHER], reasoning={"effort": "low"}
        )
        history: Any = [{"role": "user", "content": QUESTION}, *first.output, *results_of(first)]
        second = await client.responses.create(model="alone", input=history, tools=[WEATHER])
    assert second.output_text == "sun in Oslo and sun in Rome"
    assert [m["role"] for m in stand.upstream.requests[-1]["messages"]] == [
        "user",
        "assistant",
        "tool",
        "tool",
    ]


async def test_stream_that_breaks_ends_with_a_failed_response() -> None:
    backend = ScriptedBackend(error=EngineUnavailable("the provider is down"))
    async with openai_client(make_app(backend)) as client:
        events = await streamed(client, model="r2", input="hi")
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1].response.error.message == "the provider is down"
    assert events[-1].response.status == "failed"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [WEATHER, {"type": "web_search"}], "tool_choice": "required"}, "tools.1"),
        ({"input": [{"type": "computer_call", "call_id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input.0.content.0.file_id"),
        ({"inputs": "hi"}, "inputs"),
    ],
)  # fmt: skip
async def test_what_cannot_be_said_is_refused_by_name(parameters: dict[str, Any], param: str) -> None:
    async with talking() as (stand, client):
        with pytest.raises(openai.BadRequestError) as refused:
            given = parameters.pop("input", "hi")
            await client.responses.create(model="alone", input=given, extra_body=parameters)
    assert refused.value.param == param
    assert not stand.upstream.requests


async def test_tools_that_only_the_provider_runs_are_left_out_and_named() -> None:
    tools: Any = [WEATHER, {"type": "web_search", "external_web_access": False}]
    async with talking() as (stand, client):
        response = await client.responses.create(model="alone", input=QUESTION, tools=tools)
    assert len(stand.upstream.requests[0]["tools"]) == 1
    assert (response.model_extra or {})["r2"]["left_out"] == ["tools.1 (web_search)"]
    assert [tool.type for tool in response.tools] == ["function"]


async def until_done(client: AsyncOpenAI, response_id: str) -> Any:
    """The response, read again and again until it is no longer under way."""
    for _ in range(1_000):
        response = await client.responses.retrieve(response_id)
        if response.status != "in_progress":
            return response
        await asyncio.sleep(0.01)
    raise AssertionError(f"response {response_id} is still under way")


async def test_background_response_is_read_when_it_is_done() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with openai_client(make_app(backend)) as client:
        begun = await client.responses.create(model="r2", input="hi", background=True)
        with pytest.raises(openai.BadRequestError, match="not finished"):
            await client.responses.create(model="r2", input="more", previous_response_id=begun.id)
        assert backend.gate
        backend.gate.set()
        done = await until_done(client, begun.id)
        more = await client.responses.create(model="r2", input="more", previous_response_id=begun.id)
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    assert (done.status, done.output_text, done.id) == ("completed", "Hello there", begun.id)
    assert more.output_text == "Hello there"


async def test_background_response_can_be_cancelled() -> None:
    backend = ScriptedBackend(gate=asyncio.Event())
    async with openai_client(make_app(backend)) as client:
        begun = await client.responses.create(model="r2", input="hi", background=True)
        await backend.has_started.wait()
        cancelled = await client.responses.cancel(begun.id)
        again = await client.responses.cancel(begun.id)
    assert backend.was_cancelled.is_set()
    assert cancelled.status == again.status == "cancelled"


async def test_background_response_that_fails_says_why() -> None:
    backend = ScriptedBackend(error=EngineUnavailable("the provider is down"))
    async with openai_client(make_app(backend)) as client:
        begun = await client.responses.create(model="r2", input="hi", background=True)
        failed = await until_done(client, begun.id)
    assert (failed.status, failed.error.message) == ("failed", "the provider is down")


async def test_background_response_of_a_router_that_stopped_has_failed(tmp_path: Path) -> None:
    backend, kept = ScriptedBackend(gate=asyncio.Event()), {"file": str(tmp_path / "responses.sqlite")}
    async with openai_client(make_app(backend, responses=kept)) as client:
        begun = await client.responses.create(model="r2", input="hi", background=True)
    async with openai_client(make_app(ScriptedBackend(deadline_s=-1), responses=kept)) as client:
        lost = await client.responses.retrieve(begun.id)
    assert lost.status == "failed"


@pytest.mark.parametrize(
    ("parameters", "param"), [({"stream": True}, "background"), ({"store": False}, "store")]
)
async def test_what_does_not_go_with_background_is_refused(parameters: dict[str, Any], param: str) -> None:
    async with openai_client(make_app(ScriptedBackend())) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="r2", input="hi", background=True, extra_body=parameters)
    assert refused.value.param == param


@pytest.mark.parametrize("key", [{}, {"prompt_cache_key": "chat-7"}])
async def test_tool_loop_over_the_routed_model_stays_on_one_model(key: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "r2", "tools": [WEATHER], "extra_body": {"r2": {"trace": True}}}
    async with talking() as (stand, client):
        first = await client.responses.create(input=QUESTION, **key, **asked)
        async with client.responses.stream(
            input=results_of(first), previous_response_id=first.id, **asked
        ) as stream:
            second = await stream.get_final_response()
    assert second.output_text == "sun in Oslo and sun in Rome"
    notes = [(response.model_extra or {})["r2"]["trace"]["session"] for response in (first, second)]
    assert [note["state"] for note in notes] == ["new", "kept"]
    assert len({note["model"] for note in notes}) == 1
    assert [len(request["messages"]) for request in stand.upstream.requests] == [1, 4]


async def test_what_codex_sends_works_over_the_routed_model() -> None:
    async with talking() as (stand, client):
        sent = {**CODEX, "stream": False, "input": [user(QUESTION)]}
        first = await client.responses.create(model="r2", input="", extra_body=sent)
    call: Any = first.output[0]
    assert (call.type, call.call_id) == ("function_call", "call_1")
    assert (first.model_extra or {})["r2"]["left_out"] == ["tools.4 (web_search)"]
    names = {tool["function"]["name"] for tool in stand.upstream.requests[0]["tools"]}
    assert names == {"exec_command", "apply_patch", "multi_agent_v1__close_agent", "tool_search"}
