"""Requests to a provider of the Responses API, and its replies, whole and streamed, as chat completions."""

from __future__ import annotations

from typing import Any

import pytest

from r2_serve.dialects.responses.reading import EventsRead, completion_of
from r2_serve.dialects.responses.writing import write_request
from r2_serve.errors import InvalidRequest
from r2_serve.types import Message, Sampling
from tests.support import responses_provider as provider

FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CUSTOM: Any = {
    "type": "custom",
    "custom": {
        "name": "patch",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: x"}},
    },
}


def write(*messages: Message, responses: dict[str, Any] | None = None, **chat: Any) -> dict[str, Any]:
    given = messages or (Message(role="user", content="hi"),)
    wire = [message.wire for message in given]
    return write_request({"model": "m", "messages": wire, **chat}, given, Sampling(responses=responses))


def streamed(request: dict[str, Any]) -> tuple[dict[str, Any], str | None, Any]:
    """The message that the chunks of a stream make, its finish reason and its usage."""
    read, usage, reason = EventsRead(), None, None
    calls: list[dict[str, Any]] = []
    message: dict[str, Any] = {}
    for event in provider.events(provider.make_response(request)):
        chunks: Any = read(event)
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                reason = choice["finish_reason"] or reason
                _join(message, calls, choice["delta"])
    assert message.pop("role") == "assistant"
    said = {key: value for key, value in message.items() if value}
    return {**said, **({"tool_calls": calls} if calls else {})}, reason, usage


def _join(message: dict[str, Any], calls: list[dict[str, Any]], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key != "tool_calls":
            message[key] = message[key] + value if key in message else value
    for piece in delta.get("tool_calls", ()):
        if piece["index"] == len(calls):
            calls.append({key: piece[key] for key in piece if key != "index"})
            continue
        (kind,) = piece.keys() - {"index"}
        for key, text in piece[kind].items():
            calls[piece["index"]][kind][key] += text


REQUESTS: list[dict[str, Any]] = [
    {"input": "hi"},
    {"input": "hi", "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]},
    {"input": "weather?", "tools": [{"type": "function", "name": "weather"}]},
    {"input": "patch", "tools": [{"type": "custom", "name": "patch"}]},
    {"input": "news?", "tools": [{"type": "web_search"}]},
    {"input": "forbidden"},
    {"input": "hi", "max_output_tokens": 8},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request)[:60])
def test_stream_says_what_the_whole_reply_says(request_: dict[str, Any]) -> None:
    request = {"model": "m", **request_}
    completion: Any = completion_of(provider.make_response(request))
    (choice,) = completion["choices"]
    whole = {key: value for key, value in choice["message"].items() if value and key != "role"}
    message, reason, usage = streamed(request)
    assert message == whole
    assert (reason, usage) == (choice["finish_reason"], completion["usage"])
    assert usage["prompt_tokens_details"]["cached_tokens"] == 768
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 40


def test_every_event_stands_in_its_chunk_as_it_came() -> None:
    events = list(provider.events(provider.make_response({"model": "m", **REQUESTS[4]})))
    read = EventsRead()
    assert [chunk["responses"] for event in events for chunk in read(event) or ()] == events


def test_sealed_thoughts_go_back_to_the_provider_through_a_chat_client() -> None:
    completion: Any = completion_of(provider.make_response({"model": "m", **REQUESTS[1]}))
    message = completion["choices"][0]["message"]
    assert message["reasoning_content"] == "two and two"
    more = {key: message[key] for key in ("reasoning_content", "reasoning_details")}
    body = write(
        Message(role="user", content="hi"),
        Message(role="assistant", content="four", more=more),
        Message(role="user", content="sure?"),
    )
    thoughts = [item for item in body["input"] if item["type"] == "reasoning"]
    summary = [{"type": "summary_text", "text": "two and two"}]
    assert thoughts == [
        {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": provider.SEALED}
    ]


def test_chat_parameters_have_their_names_in_the_responses_api() -> None:
    body = write(
        max_tokens=50, temperature=0, reasoning_effort="low", verbosity="low", logprobs=True, top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": {}, "strict": True}},
        tools=[FUNCTION, CUSTOM, {"type": "web_search"}], parallel_tool_calls=False,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        service_tier="flex", stream=True, stream_options={"include_usage": True}, n=1,
    )  # fmt: skip
    assert body == {
        "model": "m",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "store": False,
        "stream": True,
        "max_output_tokens": 50,
        "temperature": 0,
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "text": {
            "verbosity": "low",
            "format": {"type": "json_schema", "name": "p", "schema": {}, "strict": True},
        },
        "tools": [
            {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
            {
                "type": "custom",
                "name": "patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
            },
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "service_tier": "flex",
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    }


@pytest.mark.parametrize(
    "parameters",
    [{"stop": ["x"]}, {"seed": 1}, {"n": 2}, {"logit_bias": {"1": 1}}, {"presence_penalty": 0.5}],
)
def test_parameters_that_the_api_does_not_have_are_refused_by_name(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        write(**parameters)
    assert refused.value.param == next(iter(parameters))


def test_parameters_of_a_responses_client_pass_as_they_came() -> None:
    own = {"reasoning": {"summary": "auto"}, "truncation": "auto", "tools": [{"type": "mcp"}], "x_new": 1}
    body = write(responses=own, tools=[FUNCTION], temperature=0.5)
    assert {key: body[key] for key in own} == own
    assert (body["temperature"], body["store"]) == (0.5, False)
    assert write(responses={"store": True})["store"] is True


def test_custom_calls_of_a_chat_client_keep_their_kind() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "free text"}}
    body = write(
        Message(role="user", content="patch"),
        Message(role="assistant", content=None, more={"tool_calls": [call]}),
        Message(role="tool", content="ok", more={"tool_call_id": "c"}),
    )
    assert [item["type"] for item in body["input"]] == [
        "message",
        "custom_tool_call",
        "custom_tool_call_output",
    ]


def test_failed_response_is_an_error() -> None:
    error = {"code": "rate_limit_exceeded", "message": "slow down"}
    failed: dict[str, Any] = {"status": "failed", "error": error, "output": []}
    body: Any = completion_of(failed)
    (chunk,) = EventsRead()({"type": "response.failed", "response": failed}) or ()
    assert body["error"]["message"] == "slow down"
    assert chunk["error"] == body["error"]
