"""The scripted provider is as strict as real ones, so that a client that works here tells something."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.provider.memory import Memory
from tests.conformance.provider.server import DIALECTS, KEY, answering
from tests.support.upstream import Script

PATHS = {path.rpartition("/")[2]: path for path in DIALECTS}
ASKED = 'CALL weather {"city": "Oslo"}\nCALL weather {"city": "Rome"}'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LONG = "a long text " * 500


class Provider:
    """The provider without a socket; it keeps its memory over requests."""

    def __init__(self) -> None:
        self._answer = answering(Memory())

    def post(self, dialect: str, key: str = KEY, **body: Any) -> Script:
        limit = {"max_tokens": 9} if dialect == "messages" else {}
        headers = {"authorization": f"Bearer {key}"}
        return self._answer({"model": "m", **limit, **body, "_path": PATHS[dialect], "_headers": headers})

    def ask(self, dialect: str, **body: Any) -> dict[str, Any]:
        script = self.post(dialect, **body)
        reply: dict[str, Any] = json.loads(b"".join(script.body))
        assert script.status == 200, reply
        return reply


def user(dialect: str, text: str = ASKED) -> dict[str, Any]:
    return {"input" if dialect == "responses" else "messages": [{"role": "user", "content": text}]}


def tool(dialect: str) -> dict[str, Any]:
    function = {"name": "weather", "parameters": SCHEMA}
    shapes = {
        "completions": {"type": "function", "function": function},
        "responses": {"type": "function", **function},
        "messages": {"name": "weather", "input_schema": SCHEMA},
    }
    return {"tools": [shapes[dialect]]}


def follow_up(dialect: str, reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The model's message and the results of its calls."""
    if dialect == "completions":
        message = reply["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in message["tool_calls"]
        ]
        return [message, *results]
    if dialect == "responses":
        calls = [item["call_id"] for item in reply["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": call, "output": "sun"} for call in calls]
        return [*reply["output"], *results]
    ids = [block["id"] for block in reply["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call, "content": "sun"} for call in ids]
    return [{"role": "assistant", "content": reply["content"]}, {"role": "user", "content": results}]


def continued(dialect: str, reply: dict[str, Any]) -> dict[str, Any]:
    ((name, asked),) = user(dialect).items()
    return {name: [*asked, *follow_up(dialect, reply)], **tool(dialect)}


@pytest.mark.parametrize("dialect", PATHS)
def test_two_tools_are_called_at_once_and_their_results_answered(dialect: str) -> None:
    provider = Provider()
    first = provider.ask(dialect, **user(dialect), **tool(dialect))
    again = provider.ask(dialect, **continued(dialect, first))
    assert json.dumps(first).count('\\"city\\": \\"') + json.dumps(first).count('"city": "') == 2
    assert "The tools say: sun; sun" in json.dumps(again)


@pytest.mark.parametrize("dialect", PATHS)
def test_call_without_a_result_and_result_without_a_call_are_refused(dialect: str) -> None:
    provider = Provider()
    whole = continued(dialect, provider.ask(dialect, **user(dialect), **tool(dialect)))
    name = "input" if dialect == "responses" else "messages"
    for cut in (whole[name][:-1], [whole[name][0], whole[name][-1]]):
        assert provider.post(dialect, **{**whole, name: cut}).status == 400


def test_messages_wants_unchanged_reasoning_back_before_results() -> None:
    provider, thinking = Provider(), {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    first = provider.ask("messages", **user("messages"), **tool("messages"), **thinking)
    assert provider.post("messages", **continued("messages", first), **thinking).status == 200
    thought, *calls = first["content"]
    for content in (calls, [{**thought, "signature": "another"}, *calls]):
        request = continued("messages", {"content": content})
        assert provider.post("messages", **request, **thinking).status == 400


@pytest.mark.parametrize(
    ("dialect", "is_marked", "is_cached"),
    [("completions", False, True), ("messages", False, False), ("messages", True, True)],
)
def test_prompt_is_cached_by_itself_or_where_messages_marks_it(
    dialect: str, is_marked: bool, is_cached: bool
) -> None:
    provider, mark = Provider(), {"cache_control": {"type": "ephemeral"}} if is_marked else {}
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG, **mark}]}]}
    provider.ask(dialect, **asked)
    usage = provider.ask(dialect, **asked)["usage"]
    read = usage.get("cache_read_input_tokens", usage.get("prompt_tokens_details", {}).get("cached_tokens"))
    assert (read > 1024) is is_cached


@pytest.mark.parametrize("dialect", PATHS)
def test_key_of_another_and_unknown_parameters_are_refused(dialect: str) -> None:
    provider = Provider()
    assert provider.post(dialect, key="sk-r2-a-client", **user(dialect)).status == 401
    assert provider.post(dialect, r2={}, **user(dialect)).status == 400


@pytest.mark.parametrize("dialect", PATHS)
def test_failure_that_is_asked_for_ends_after_its_number_of_tries(dialect: str) -> None:
    provider = Provider()
    asked = user(dialect, "FAIL 429 x2 #once")
    assert [provider.post(dialect, **asked).status for _ in range(3)] == [429, 429, 200]
