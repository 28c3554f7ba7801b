"""A conversation said in any dialect and read back says the same; what a dialect cannot say, it refuses."""

from __future__ import annotations

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
from tests.dialects.conversations import Body, bodies, normal

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
    assert refused.value.code == "unsupported_parameter"
