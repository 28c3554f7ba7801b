"""POST /v1/messages over a provider that speaks Messages and one that speaks chat completions."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import pytest

from tests.support import messages_provider as provider
from tests.support.messages_stand import anthropic_client, messages_stand
from tests.support.scripted_backend import Connection, ScriptedBackend, make_app, make_client
from tests.support.upstream import Script, chunk, completion, sse

TOOL: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED: Any = [{"role": "user", "content": "How is the weather in Oslo and in Rome?"}]
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
MODELS = pytest.mark.parametrize("model", ["claude", "gpt"])


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types."""
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def without_ours(value: dict[str, Any]) -> dict[str, Any]:
    return {key: held for key, held in value.items() if key not in ("r2", "id", "model")}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"thinking": THINKING},
        {"tools": [TOOL]},
        {"tools": [TOOL], "thinking": THINKING},
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
        {"stop_sequences": ["END"]},
        {"messages": [{"role": "user", "content": "something forbidden"}]},
        {"messages": [{"role": "user", "content": "something long"}]},
    ],
)
async def test_reply_of_a_messages_provider_comes_back_as_it_came(fields: Any) -> None:
    async with messages_stand() as stand:
        whole = await stand.ask(**fields)
        streamed = events_of(await stand.ask(stream=True, **fields))
        sent = provider.message_of(stand.anthropic.requests[0])
    assert without_ours(whole.json()) == without_ours(sent)
    assert whole.json()["model"] == streamed[0]["message"]["model"] == "claude"
    assert [whole.json()["id"], streamed[0]["message"]["id"]] == [
        f"msg_{trace.reply_id}" for trace in stand.traces
    ]
    came = [event for event in provider.stream_of(sent) if event["type"] != "ping"]
    start, delta = streamed.pop(0), streamed.pop(-2)
    assert without_ours(start["message"]) == without_ours(came.pop(0)["message"])
    expected = came.pop(-2)
    assert delta["delta"] == expected["delta"]
    assert delta["usage"].items() >= expected["usage"].items()
    assert delta["r2"]["models"] == ["claude"]
    assert streamed == came


async def test_request_reaches_a_messages_provider_as_it_was_sent() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    fields: Any = {
        "system": [{"type": "text", "text": "Be short.", "cache_control": mark}],
        "tools": [
            {**TOOL, "cache_control": mark, "input_examples": [{"city": "Oslo"}]},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
        "metadata": {"user_id": "user-1"},
        "thinking": {**THINKING, "display": "omitted"},
        "output_config": {"effort": "max"},
        "mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}],
        "service_tier": "standard_only",
        "top_k": 5,
        "temperature": 1.0,
        "stop_sequences": ["a", "b"],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": mark}]},
            {
                "role": "assistant",
                "content": [
                    *(provider.THOUGHT, provider.REDACTED, provider.SEARCH, provider.FOUND),
                    *(provider.CITED, provider.THOUGHT),
                    {**provider.call(1, "Oslo"), "caller": {"type": "direct"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "is_error": True,
                        "content": [
                            {"type": "text", "text": "no"},
                            {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
                        ],
                        "cache_control": mark,
                    },
                    {
                        "type": "document",
                        "source": {"type": "url", "url": "https://x/a.pdf"},
                        "citations": {"enabled": True},
                    },
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
    }
    async with messages_stand() as stand:
        headers = {"anthropic-beta": "mcp-client-2025-11-20", "anthropic-version": "2026-10-21"}
        stand.client.headers.update(headers)
        response = await stand.ask(**fields)
        assert response.status_code == 200, response.text
        (request,) = stand.anthropic.requests
    assert request.pop("_headers").items() >= headers.items()
    assert request.pop("_path") == "/v1/messages"
    assert request == {"model": "claude-real", "max_tokens": 100, **fields}


@MODELS
@pytest.mark.parametrize("stream", [False, True])
async def test_tool_loop_of_two_turns_works_with_anthropics_client(model: str, stream: bool) -> None:
    async def turn(messages: Any) -> Any:
        asked: Any = {"model": model, "max_tokens": 100, "messages": messages, "tools": [TOOL]}
        if not stream:
            return await client.messages.create(**asked)
        async with client.messages.stream(**asked) as events:
            return await events.get_final_message()

    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        first = await turn(ASKED)
        calls = [block for block in first.content if block.type == "tool_use"]
        results: Any = [
            {"type": "tool_result", "tool_use_id": call.id, "content": f"sun in {call.input['city']}"}
            for call in calls
        ]
        history = [
            *ASKED,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": results},
        ]
        second = await turn(history)
    assert (first.stop_reason, second.stop_reason) == ("tool_use", "end_turn")
    assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert second.content[-1].text == "sun in Oslo and sun in Rome"
    assert second.usage.output_tokens == 60
    if model == "gpt":
        asked = stand.openai.requests[1]["messages"]
        assert [message["role"] for message in asked] == ["user", "assistant", "tool", "tool"]
        assert [message.get("tool_call_id") for message in asked][2:] == ["call_1", "call_2"]


async def test_chat_provider_gets_no_field_that_only_messages_has() -> None:
    mark = {"type": "ephemeral"}
    fields: Any = {
        "system": [{"type": "text", "text": "Be short.", "cache_control": mark}],
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [provider.THOUGHT, {"type": "text", "text": "hello"}]},
            {"role": "user", "content": [{"type": "text", "text": "two plus two?", "cache_control": mark}]},
        ],
        "tools": [{**TOOL, "cache_control": mark, "strict": True}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": THINKING,
        "metadata": {"user_id": "u" * 100},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }
    async with messages_stand() as stand:
        response = await stand.ask("gpt", **fields)
        assert response.status_code == 200, response.text
        (request,) = stand.openai.requests
    del request["_headers"], request["_path"]
    function = {"name": "weather", "description": "Tells the weather.", "strict": True}
    assert request == {
        "model": "gpt-real",
        "max_tokens": 100,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "two plus two?"},
        ],
        "tools": [{"type": "function", "function": {**function, "parameters": TOOL["input_schema"]}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_of_a_chat_provider_are_thinking_blocks_and_go_back_as_it_sent_them(
    stream: bool,
) -> None:
    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        asked: Any = {"model": "gpt", "max_tokens": 9, "messages": ASKED, "output_config": {"effort": "low"}}
        if stream:
            async with client.messages.stream(**asked) as events:
                message = await events.get_final_message()
        else:
            message = await client.messages.create(**asked)
        history: Any = [*ASKED, {"role": "assistant", "content": message.content}, *ASKED]
        await client.messages.create(**{**asked, "messages": history})
        first, second = stand.openai.requests
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text"]
    assert first["reasoning_effort"] == "low"
    said = {"role": "assistant", "content": "four", "reasoning_content": "two and two"}
    assert second["messages"][1] == said


DETAILS: Any = [{"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "format": "x", "index": 0}]


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_that_only_their_provider_reads_go_back_to_it_in_the_signature(stream: bool) -> None:
    message = {"role": "assistant", "content": "four", "reasoning": "two", "reasoning_details": DETAILS}
    deltas = [{"reasoning": "tw"}, {"reasoning": "o", "reasoning_details": DETAILS}, {"content": "four"}]

    def script(request: dict[str, Any]) -> Script:
        if not request.get("stream"):
            return Script([json.dumps(completion(message=message)).encode()])
        pieces = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        return Script(sse(*pieces, chunk(None, "stop")), headers={"content-type": "text/event-stream"})

    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        stand.openai.script = script
        asked: Any = {"model": "gpt", "max_tokens": 9, "messages": ASKED}
        if stream:
            async with client.messages.stream(**asked) as events:
                reply = await events.get_final_message()
        else:
            reply = await client.messages.create(**asked)
        history: Any = [*ASKED, {"role": "assistant", "content": reply.content}, *ASKED]
        await client.messages.create(**{**asked, "messages": history})
        await client.messages.create(**{**asked, "model": "claude", "messages": history})
        sent_back = stand.openai.requests[1]["messages"][1]
        sent_on = stand.anthropic.requests[0]["messages"][1]["content"]
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert reply.content[0].thinking == "two"
    assert sent_back == message
    assert sent_on == [{"type": "text", "text": "four"}], "thoughts of others are not for this provider"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [TOOL, {"type": "web_search_20250305", "name": "web_search"}], "tools.1"),
        ("tools", [{"type": "bash_20250124", "name": "bash"}], "tools.0"),
        ("mcp_servers", [{"type": "url", "url": "https://x", "name": "x"}], "mcp_servers"),
        ("container", "c1", "container"),
        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}, "context_management"),
        ("inference_geo", "us", "inference_geo"),
        ("invented_later", 1, "invented_later"),
        ("messages", [*ASKED, {"role": "assistant", "content": "It is"}], "messages.1"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "search_result", "source": "x", "title": "x"}]}],
            "messages.0",
        ),
        (
            "messages",
            [
                *ASKED,
                {"role": "assistant", "content": [provider.SEARCH, provider.FOUND, provider.CITED]},
                *ASKED,
            ],
            "messages.1",
        ),
    ],
)
async def test_what_only_messages_can_say_is_refused_by_name_for_other_models(
    field: str, value: Any, param: str
) -> None:
    async with messages_stand() as stand:
        response = await stand.ask("gpt", **{field: value})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
        assert error["param"] == param
        assert "ask one of ['claude']" in error["message"]
        assert not stand.openai.requests
        assert (await stand.ask("claude", **{field: value})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
        ({"system": 5}, "system"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
        ({"model": None}, "model"),
        ({"r2": {"polcy": "x"}}, "r2.polcy"),
        ({"api_base": "http://x"}, "api_base"),
    ],
)
async def test_wrong_field_is_refused_by_name_in_anthropics_shape(fields: Any, param: str) -> None:
    async with messages_stand() as stand:
        response = await stand.ask(**fields)
        body = response.json()
        assert not stand.anthropic.requests
    assert (response.status_code, body["type"], body["error"]["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert body["error"]["param"] == param
    assert body["request_id"] == response.headers["request-id"]


async def test_model_that_is_not_known_is_not_found() -> None:
    async with messages_stand() as stand:
        response = await stand.ask("claud")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    assert "did you mean 'claude'?" in response.json()["error"]["message"]


@MODELS
@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (400, "invalid_request_error", 400),
        (429, "rate_limit_error", 429),
        (529, "overloaded_error", 503),
    ],
)
async def test_error_of_the_provider_keeps_its_kind(model: str, status: int, kind: str, shown: int) -> None:
    async with messages_stand() as stand:
        stand.anthropic.script = stand.openai.script = provider.error(status, "not so")
        response = await stand.ask(model)
    assert (response.status_code, response.json()["error"]["type"]) == (shown, kind)
    assert "not so" in response.json()["error"]["message"]


async def test_stream_that_breaks_ends_with_an_error_event() -> None:
    async with messages_stand() as stand:
        events = list(provider.events_of(provider.message_of({"messages": ASKED})))
        fault = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        broken = [*events[:4], b"event: error\ndata: " + json.dumps(fault).encode() + b"\n\n"]
        stand.anthropic.script = Script(broken, headers={"content-type": "text/event-stream"})
        streamed = events_of(await stand.ask(stream=True))
    assert [event["type"] for event in streamed][-1] == "error"
    assert "message_stop" not in [event["type"] for event in streamed]
    assert streamed[-1]["error"]["type"] == "overloaded_error"


@MODELS
@pytest.mark.parametrize("stream", [False, True])
async def test_ledger_books_cache_and_thinking_as_the_provider_bills_them(model: str, stream: bool) -> None:
    async with messages_stand() as stand:
        response = await stand.ask(model, stream=stream)
        (trace,) = stand.traces
    usage = events_of(response)[-2]["usage"] if stream else response.json()["usage"]
    if model == "gpt":
        read, written, for_an_hour, new, thoughts = 768, 0, 0, 232, 40
    else:
        read, written, for_an_hour, new, thoughts = 700, 200, 50, 100, 40
    bill = new * Decimal(3) + read * Decimal("0.3") + 60 * Decimal(15)
    bill += (written - for_an_hour) * Decimal("3.75") + for_an_hour * Decimal(6)
    assert trace.cost_usd == bill / 10**6
    assert trace.calls[0].usage.reasoning_tokens == thoughts
    counts = {"input_tokens": new, "cache_read_input_tokens": read, "cache_creation_input_tokens": written}
    assert usage.items() >= {**counts, "output_tokens": 60}.items()


@pytest.mark.parametrize("stream", [False, True])
async def test_virtual_model_answers_in_messages(stream: bool) -> None:
    async with make_client(ScriptedBackend()) as client:
        body = {"model": "r2", "max_tokens": 9, "system": "s", "messages": ASKED, "stream": stream}
        response = await client.post("/v1/messages", json=body)
    usage = {"input_tokens": 30, "output_tokens": 7}
    nothing = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    if not stream:
        message = response.json()
        assert message["content"] == [{"type": "text", "text": "Hello there"}]
        assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "r2")
        assert (message["id"], message["stop_reason"], message["stop_sequence"]) == (
            "msg_id2",
            "end_turn",
            None,
        )
        assert message["usage"] == usage | nothing
        assert message["r2"]["subtasks"] == 2
        return
    kinds = [event["type"] for event in events_of(response)]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    delta = events_of(response)[-2]
    assert (delta["delta"], delta["usage"]) == (
        {"stop_reason": "end_turn", "stop_sequence": None},
        usage | nothing,
    )
    assert delta["r2"]["cost_usd"] == "0.0000022"


async def test_silent_stream_is_kept_open_by_pings() -> None:
    backend = ScriptedBackend(pieces=(), gate=asyncio.Event())
    body = {"model": "r2", "max_tokens": 9, "messages": ASKED, "stream": True}
    app = make_app(backend, heartbeat_s=0.005)
    connection = Connection(app, json.dumps(body).encode(), path="/v1/messages")
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    assert [await connection.next_body() for _ in range(3)] == [ping] * 3
    assert backend.gate
    backend.gate.set()
    await connection.task


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_key_is_taken_from_either_header(header: str) -> None:
    async with make_client(ScriptedBackend(), api_keys_env="CLIENT_KEYS") as client:
        body = {"model": "r2", "max_tokens": 9, "messages": ASKED}
        good = "Bearer key-two" if header == "authorization" else "key-two"
        right = await client.post("/v1/messages", json=body, headers={header: good})
        wrong = await client.post("/v1/messages", json=body, headers={header: good + "x"})
        none = await client.post("/v1/messages", json=body)
    assert right.status_code == 200
    for response in (wrong, none):
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    assert "a key that is not known" in wrong.text
    assert "no key" in none.text


async def test_anthropics_client_raises_its_own_errors() -> None:
    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="none", max_tokens=9, messages=ASKED)
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await client.messages.create(model="claude", max_tokens=-1, messages=ASKED)
        stand.anthropic.script = provider.error(429, "slow down")
        with pytest.raises(anthropic.RateLimitError, match="slow down"):
            await client.messages.create(model="claude", max_tokens=9, messages=ASKED)


async def test_anthropics_client_lists_the_models_and_openais_gets_its_own_list() -> None:
    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        listed = [model async for model in client.models.list()]
        one = await client.models.retrieve("claude")
        plain = (await stand.client.get("/v1/models")).json()
    assert [model.id for model in listed] == ["r2", "claude", "gpt"]
    assert (one.type, one.display_name, one.max_input_tokens) == ("model", "claude", None), (
        "no context is known"
    )
    assert one.created_at.year >= 2026
    assert [model["object"] for model in plain["data"]] == ["model"] * 3


async def test_other_version_of_the_api_is_refused() -> None:
    async with messages_stand() as stand:
        stand.client.headers["anthropic-version"] = "2023-01-01"
        response = await stand.ask()
    assert response.json()["error"]["param"] == "anthropic-version"


async def test_tokens_are_counted_by_the_provider_that_counts() -> None:
    asked: Any = {"messages": ASKED, "system": "s", "tools": [TOOL], "thinking": THINKING}
    async with messages_stand() as stand, anthropic_client(stand.app) as client:
        count = await client.messages.count_tokens(model="claude", **asked)
        (request,) = stand.anthropic.requests
    assert count.input_tokens == 14
    assert request.pop("_path") == "/v1/messages/count_tokens"
    del request["_headers"]
    assert request.keys() == {"model", *asked}
    assert not stand.traces, "a count is no call"


@pytest.mark.parametrize("model", ["gpt", "r2"])
async def test_tokens_are_estimated_for_all_other_models(model: str) -> None:
    asked: Any = [{"role": "user", "content": "word " * 1000}]
    async with messages_stand() as stand:
        response = await stand.ask(model, "/v1/messages/count_tokens", messages=asked, max_tokens=None)
        assert not stand.openai.requests
        assert not stand.anthropic.requests
    assert 1000 <= response.json()["input_tokens"] <= 2000


async def test_provider_that_returns_to_an_earlier_tool_call_is_no_answer() -> None:
    def piece(index: int) -> Any:
        call = {"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": "{}"}}
        return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}

    async with messages_stand() as stand:
        pieces = [piece(0), piece(1), piece(0)]
        stand.openai.script = Script(sse(*pieces), headers={"content-type": "text/event-stream"})
        streamed = events_of(await stand.ask("gpt", stream=True))
    assert streamed[-1]["type"] == "error"


async def test_routed_tool_loop_gets_the_clients_blocks_and_stays_on_its_model() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    fields: Any = {
        "system": [{"type": "text", "text": "Be short.", **mark}],
        "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        "thinking": THINKING,
    }
    async with messages_stand() as stand:
        stand.anthropic.script = tool_calls_first
        first = (await stand.ask("r2", **fields)).json()
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "sun"}
            for block in first["content"]
            if block["type"] == "tool_use"
        ]
        history = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": results},
        ]
        second = (await stand.ask("r2", messages=history, **fields)).json()
        one, two = stand.anthropic.requests
        notes = [trace.session for trace in stand.traces]
        assert not stand.openai.requests, "only Messages has the tool web_search"
    assert (one["system"], one["tools"]) == (fields["system"], fields["tools"])
    assert two["messages"][1]["content"] == first["content"]
    assert provider.THOUGHT in first["content"]
    assert second["content"][-1]["text"] == "sun and sun"
    assert [(note and note.model, note and note.state) for note in notes] == [
        ("claude", "new"),
        ("claude", "kept"),
    ]


def tool_calls_first(request: dict[str, Any]) -> Script:
    """Answers as the provider does to a request with the client's tools alone."""
    return provider.answer({**request, "tools": request["tools"][:1]})


async def test_step_of_a_plan_sends_its_text_with_the_clients_blocks() -> None:
    plan = {"subtasks": [{"id": 1, "text": "look"}, {"id": 2, "text": "say #1", "depends_on": [1]}]}
    mark = {"cache_control": {"type": "ephemeral"}}
    asked = [{"role": "user", "content": [{"type": "text", "text": "hi", **mark}]}]
    async with messages_stand() as stand:
        response = await stand.ask("r2", messages=asked, r2={"plan": plan, "policy": "all:claude"})
        steps = [request["messages"][-1]["content"] for request in stand.anthropic.requests]
    assert response.status_code == 200, response.text
    assert [blocks[0] for blocks in steps] == [{"type": "text", "text": "hi", **mark}] * 2
    assert ["look" in steps[0][-1]["text"], "say" in steps[1][-1]["text"]] == [True, True]
