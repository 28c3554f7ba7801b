"""A virtual model takes what agents send: the real `openai` client drives a tool loop over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.test_pass_through import ASKED, PASSED_ON, TOOL, results_of, talking

TRACED: Any = {"r2": {"trace": True}}


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_loop_of_two_turns_over_the_virtual_model_stays_on_one_model(stream: bool) -> None:
    async with talking() as (stand, client):

        async def turn(history: list[Any]) -> tuple[Any, Any]:
            """The assistant's message and `r2`."""
            options: dict[str, Any] = {
                "model": "r2",
                "messages": history,
                "tools": [TOOL],
                "extra_body": TRACED,
            }
            if not stream:
                reply = await client.chat.completions.create(**options, parallel_tool_calls=True)
                return reply.choices[0].message, (reply.model_extra or {})["r2"]
            async with client.chat.completions.stream(**options, parallel_tool_calls=True) as events:
                chunks = [event.chunk async for event in events if event.type == "chunk"]
                whole = await events.get_final_completion()
            return whole.choices[0].message, (chunks[-1].model_extra or {})["r2"]

        message, first = await turn(ASKED)
        assert [call.id for call in message.tool_calls] == ["call_1", "call_2"]
        answer, second = await turn([*ASKED, message, *results_of(message)])
    assert answer.content == "sun in Oslo and sun in Rome"
    assert first["models"] == second["models"] == ["first"]
    assert [each["session"]["state"] for each in (first, second)] == ["new", "kept"]
    assert (second["session"]["turn"], second["session"]["model"]) == (2, "first")
    assert second["trace"]["session"] == second["session"]
    one, two = stand.upstream.requests
    assert one["messages"] == ASKED and (one["tools"], one["parallel_tool_calls"]) == ([TOOL], True)
    calls = [call["function"]["arguments"] for call in two["messages"][1]["tool_calls"]]
    assert calls == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert not stand.other.requests, "one call a turn"


async def test_headers_name_the_session_and_carry_its_note() -> None:
    async with talking() as (_, client):
        notes = []
        for name in ("a", "b", "a"):
            raw = await client.chat.completions.with_raw_response.create(
                model="r2", messages=ASKED, tools=[TOOL], extra_headers={"x-session-id": name}
            )
            notes.append(raw.headers["x-r2-session"])
    assert notes == ["new; turn=1", "new; turn=1", "kept; turn=2"]


@pytest.mark.parametrize("stream", [False, True])
async def test_last_step_carries_the_parameters_and_its_reply_is_the_clients(stream: bool) -> None:
    plan = {"subtasks": [{"id": 1, "text": "think"}, {"id": 2, "text": "answer with #1", "depends_on": [1]}]}
    body: Any = {"r2": {"plan": plan, "models": {"1": "second", "2": "alone"}}, "top_k": 5}
    async with talking() as (stand, client):
        came = await client.chat.completions.create(
            model="r2", messages=ASKED, stream=stream, extra_body=body, **PASSED_ON
        )
        if stream:
            chunks: Any = [chunk async for chunk in came]
            texts = {
                index: "".join(
                    choice.delta.content or ""
                    for c in chunks
                    for choice in c.choices
                    if choice.index == index
                )
                for index in (0, 1)
            }
            assert texts == {0: "four", 1: "four"}
        else:
            assert [choice.message.content for choice in came.choices] == ["four", "four"]
            assert came.choices[0].message.reasoning_content == "two and two"
            assert came.system_fingerprint == "fp_1"
    (sent,) = stand.upstream.requests
    assert {name: sent[name] for name in PASSED_ON} == PASSED_ON and sent["top_k"] == 5
    (inner,) = stand.other.requests
    assert not inner.keys() & {*PASSED_ON, "top_k"}


async def test_refusal_of_the_provider_reaches_the_client_of_the_virtual_model_as_it_came() -> None:
    async with talking() as (_, client):
        refused = await client.chat.completions.create(
            model="r2", messages=[{"role": "user", "content": "forbidden"}], tools=[TOOL]
        )
    assert refused.choices[0].message.refusal == "I will not"


async def test_turns_of_a_stored_response_are_one_session() -> None:
    tool = {"type": "function", **TOOL["function"]}
    async with talking() as (stand, client):
        first = await client.responses.create(model="r2", input="How is the weather?", tools=[tool])
        results: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
            for item in first.output
            if item.type == "function_call"
        ]
        second = await client.responses.create(
            model="r2", input=results, tools=[tool], previous_response_id=first.id
        )
    assert len(results) == 2 and second.output_text == "sun and sun"
    notes = [(each.model_extra or {})["r2"]["session"] for each in (first, second)]
    assert [(note["state"], note["turn"], note["model"]) for note in notes] == [
        ("new", 1, "first"),
        ("kept", 2, "first"),
    ]
    assert len(stand.upstream.requests) == 2
