"""Requests of the Responses API with anything in any place: an answer or a refusal, never a fault of ours."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from r2_serve.dialects.responses.reading import EventsRead, completion_of
from r2_serve.dialects.responses.writing import write_request
from r2_serve.errors import InvalidRequest
from r2_serve.http.openai_wire import parse_chat
from tests.dialects.test_responses import CODEX, user
from tests.support import responses_provider as provider
from tests.support.scripted_backend import ScriptedBackend, make_client

JUNK: list[Any] = [
    None, True, 0, -1, 1.5, "", "x", "\ud800", [], {}, [None], {"type": None}, {"type": "x"}, [[]],
    {"a": {"b": [1]}}, float("nan"), 10**400, "r2.v1.!!!", "r2.v1.W10=",
]  # fmt: skip
REQUEST: dict[str, Any] = {
    **CODEX,
    "stream": False,
    "store": True,
    "instructions": "be short",
    "previous_response_id": None,
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}, "verbosity": "low"},
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "input": [
        user("hi"),
        {"type": "item_reference", "id": "msg_1"},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "s"}],
         "content": [{"type": "reasoning_text", "text": "t"}], "encrypted_content": "r2.v1.e30="},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "x"},
        {"type": "tool_search_output", "call_id": "3", "tools": [{"type": "function", "name": "z"}]},
    ],
}  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    members = (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    )
    for key, member in members:
        yield from places(member, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    value[place[0]] = replaced(value[place[0]], place[1:], junk)
    return value


async def test_no_request_makes_the_server_fail() -> None:
    chance, statuses = random.Random(7), set()
    async with make_client(ScriptedBackend()) as client:
        for _ in range(400):
            body = copy.deepcopy(REQUEST)
            if chance.random() < 0.8:
                del body["input"][1]
            body = replaced(body, chance.choice(list(places(body))), copy.deepcopy(chance.choice(JUNK)))
            response = await client.post(
                "/v1/responses", content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert response.status_code < 500, json.dumps(body)
            statuses.add(response.status_code)
    assert {200, 400} <= statuses


CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "file", "file": {}}]},
        {"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "r",
         "reasoning_details": [{"type": "reasoning.encrypted", "format": "openai-responses-v1", "id": "a"}],
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "2", "type": "custom", "custom": {"name": "g", "input": "x"}}]},
        {"role": "tool", "tool_call_id": "2", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}},
              {"type": "custom", "custom": {"name": "g", "format": {"type": "grammar", "grammar": {}}}}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "reasoning_effort": "low",
    "logprobs": True,
}  # fmt: skip


def test_no_chat_request_makes_the_translation_fail() -> None:
    chance = random.Random(7)
    places_of_chat = list(places(CHAT))[1:]
    for _ in range(1_000):
        body = replaced(copy.deepcopy(CHAT), chance.choice(places_of_chat), chance.choice(JUNK))
        try:
            query = parse_chat(json.dumps(body).encode()).to_query("x", is_virtual=False)
            messages = [message.wire for message in query.messages]
            chat = {"model": "m", "messages": messages, **query.sampling.forwarded}
            assert write_request(chat, query.messages, query.sampling)["input"] is not None
        except InvalidRequest as e:
            assert e.param or e.code == "invalid_json"


def test_no_reply_of_a_provider_makes_the_translation_fail() -> None:
    chance = random.Random(7)
    tools: list[Any] = [[], [{"type": "function", "name": "f"}], [{"type": "web_search"}]]
    for _ in range(500):
        asked = {
            "model": "m",
            "input": "x",
            "reasoning": {"a": 1},
            "tools": copy.deepcopy(chance.choice(tools)),
        }
        response = copy.deepcopy(provider.make_response(asked))
        events = copy.deepcopy(list(provider.events(response)))
        broken = replaced(response, chance.choice(list(places(response))[1:]), chance.choice(JUNK))
        assert isinstance(completion_of(broken), dict)
        read, at = EventsRead(), chance.randrange(len(events))
        events[at] = replaced(events[at], chance.choice(list(places(events[at]))[1:]), chance.choice(JUNK))
        assert all(chunk for event in events for chunk in read(event) or ())
