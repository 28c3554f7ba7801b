"""A conversation said in any dialect and read back says the same; what a dialect cannot say, it refuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.dialects.messages.requests import read_request
from r2_serve.dialects.messages.writing import write_request as write_messages
from r2_serve.dialects.responses.requests import input_items, translated
from r2_serve.dialects.responses.writing import write_request as write_responses
from r2_serve.errors import InvalidRequest
from r2_serve.types import Message, Sampling

Body = dict[str, Any]
"""A body of chat completions, the shape of the core."""
Through = Callable[[Body], Body]
"""Says a body in a dialect and reads it back."""


def messages_of(body: Body) -> tuple[Message, ...]:
    def message(wire: Body) -> Message:
        more = {key: wire[key] for key in wire if key not in ("role", "content")}
        return Message.model_validate({"role": wire["role"], "content": wire["content"], "more": more})

    return tuple(map(message, body["messages"]))


def through_chat(body: Body) -> Body:
    said: Body = json.loads(json.dumps({**body, "messages": [message.wire for message in messages_of(body)]}))
    return said


def through_responses(body: Body) -> Body:
    said: Any = json.loads(json.dumps(write_responses(body, messages_of(body), Sampling())))
    return translated(said, input_items(said["input"]), is_native=False).chat


def through_messages(body: Body) -> Body:
    return read_request(json.dumps(write_messages(body, messages_of(body), Sampling())).encode(), {}).chat


DIALECTS: dict[str, Through] = {
    "chat": through_chat,
    "responses": through_responses,
    "messages": through_messages,
}


def normal(body: Body) -> Body:
    """The body with one spelling for what has several: a single text, no content beside calls, the limit."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    rest = {key: value for key, value in body.items() if key not in ("max_completion_tokens", "max_tokens")}
    return {**rest, "max_tokens": limit, "messages": [_normal_message(wire) for wire in body["messages"]]}


def _normal_message(wire: Body) -> Body:
    content = wire["content"]
    if isinstance(content, list) and len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    calls = [{**call, "function": _read(call["function"])} for call in wire.get("tool_calls", ())]
    more = {"tool_calls": calls} if calls else {}
    return {**wire, "content": content or ("" if not calls else None), **more}


def _read(function: Body) -> Body:
    return {**function, "arguments": json.loads(function["arguments"])}


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    str.strip
)
NAMES = st.sampled_from(["weather", "read_file", "a-b_c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
IMAGE: Body = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PARTS = st.lists(
    TEXTS.map(lambda text: {"type": "text", "text": text}) | st.just(IMAGE), min_size=1, max_size=3
)
USER = st.builds(lambda content: [{"role": "user", "content": content}], TEXTS | PARTS)
ANSWER = st.builds(lambda text, user: [{"role": "assistant", "content": text}, *user], TEXTS, USER)
"""An answer and the user's reply to it: the Responses API makes one turn of a text and the calls after it."""


@st.composite
def tool_turn(draw: st.DrawFn) -> list[Body]:
    """Calls of tools, with or without words, and their results."""
    numbers = range(draw(st.integers(1, 3)))
    start = draw(st.integers(0, 10**6))
    ids = [f"call_{start}_{number}" for number in numbers]
    arguments = st.dictionaries(TEXTS, VALUES, max_size=2).map(json.dumps)
    calls = [
        {"id": i, "type": "function", "function": {"name": draw(NAMES), "arguments": draw(arguments)}}
        for i in ids
    ]
    says: Body = {"role": "assistant", "content": draw(st.none() | TEXTS), "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": i, "content": draw(TEXTS | PARTS)} for i in ids]
    return [says, *results]


TOOL = st.fixed_dictionaries(
    {"name": NAMES, "parameters": st.just({"type": "object", "properties": {"x": {"type": "string"}}})},
    optional={"description": TEXTS, "strict": st.just(True)},
).map(lambda function: {"type": "function", "function": function})
TOOLS = st.lists(TOOL, min_size=1, max_size=3, unique_by=lambda tool: tool["function"]["name"])
CHOICES = st.sampled_from(["auto", "required", "none"]) | NAMES.map(
    lambda name: {"type": "function", "function": {"name": name}}
)
SCHEMA: Body = {"name": "output", "schema": {"type": "object"}, "strict": True}
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0.1, 1),
        "stream": st.just(True),
        "reasoning_effort": st.sampled_from(["low", "medium", "high"]),
        "response_format": st.just({"type": "json_schema", "json_schema": SCHEMA}),
    },
)


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """Requests that every dialect can say."""
    system = draw(st.just([]) | TEXTS.map(lambda text: [{"role": "system", "content": text}]))
    turns = draw(st.lists(USER | ANSWER | tool_turn(), max_size=4))
    messages = [*system, *draw(USER), *itertools.chain(*turns), *draw(USER)]
    body: Body = {"model": "m", "max_tokens": draw(st.integers(16, 9_999)), "messages": messages}
    if draw(st.booleans()):
        body |= {"tools": draw(TOOLS)}
        choice = draw(st.none() | CHOICES)
        body |= {} if choice is None else {"tool_choice": choice}
        if choice not in (None, "none") and draw(st.booleans()):
            body |= {"parallel_tool_calls": False}
    return body | draw(PARAMETERS)


@given(bodies(), st.permutations(list(DIALECTS)))
def test_conversation_said_in_any_two_dialects_comes_back_equal(body: Body, order: list[str]) -> None:
    first, second, _ = order
    once = {**DIALECTS[first](body), "max_tokens": body["max_tokens"]}
    assert normal(once) == normal(body)
    assert normal(DIALECTS[second](once)) == normal(body)


PLAIN: Body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
CUSTOM_CALL: Body = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "x"}}
VIDEO: Body = {"type": "video_url", "video_url": {"url": "http://x"}}


def message(**wire: Any) -> Body:
    return {"messages": [{"role": "user", "content": "hi", **wire}]}


@pytest.mark.parametrize(
    ("changes", "param", "able"),
    [
        ({"stop": ["x"]}, "stop", {"chat", "messages"}),
        ({"seed": 1}, "seed", {"chat"}),
        ({"n": 2}, "n", {"chat"}),
        ({"presence_penalty": 0.5}, "presence_penalty", {"chat"}),
        ({"frequency_penalty": 0.5}, "frequency_penalty", {"chat"}),
        ({"logit_bias": {"1": 1}}, "logit_bias", {"chat"}),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction", {"chat"}),
        ({"verbosity": "low"}, "verbosity", {"chat", "responses"}),
        ({"service_tier": "flex"}, "service_tier", {"chat", "responses"}),
        ({"logprobs": True}, "logprobs", {"chat", "responses"}),
        ({"response_format": {"type": "json_object"}}, "response_format", {"chat", "responses"}),
        ({"temperature": 1.5}, "temperature", {"chat", "responses"}),
        (message(name="ann"), "messages.0.name", {"chat"}),
        (message(role="function", name="f"), "messages.0", {"chat"}),
        (message(content=[VIDEO]), "messages.0.content.0", {"chat"}),
        (message(role="assistant", audio={"id": "a"}), "messages.0.audio", {"chat"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("name", DIALECTS)
def test_what_a_dialect_cannot_say_it_refuses_by_name(
    name: str, changes: Body, param: str, able: set[str]
) -> None:
    body = {**PLAIN, **changes}
    if name in able:
        read = DIALECTS[name](body)
        assert {key: read.get(key) for key in changes} == changes
        return
    sampling = Sampling(temperature=body.get("temperature"), forwarded=changes)
    with pytest.raises(InvalidRequest) as refused:
        {"responses": write_responses, "messages": write_messages}[name](body, messages_of(body), sampling)
    assert (refused.value.param or "").startswith(param)
