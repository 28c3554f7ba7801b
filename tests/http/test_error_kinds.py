"""The client's library raises the error that the provider's own endpoint would have made it raise."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from tests.support.faults import events, json_reply
from tests.support.hosted_stand import Stand, standing
from tests.support.served_app import openai_client
from tests.support.upstream import Script, chunk

HELLO: Any = [{"role": "user", "content": "hello"}]
NO_TOOL = {
    "error": {
        "message": "Invalid value: 'tool'.",
        "type": "invalid_request_error",
        "param": "tools[0].type",
        "code": "invalid_value",
    }
}
BUSY = {"error": {"message": "Rate limit reached in organization org-secret123", "type": "tokens"}}
TOO_LONG = {"error": {"message": "prompt is too long: 213462 tokens > 200000 maximum"}}
WRONG_KEY = {"error": {"message": "Incorrect API key provided: sk-proj-****abcd.", "code": "invalid_api_key"}}


@asynccontextmanager
async def talking(script: Script, **limits: Any) -> AsyncIterator[tuple[Stand, openai.AsyncOpenAI]]:
    async with standing(script, **limits) as stand, openai_client(stand.app) as client:
        yield stand, client.with_options(max_retries=0)


async def asked(client: openai.AsyncOpenAI, model: str = "alone", **more: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model=model, messages=HELLO, **more)
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_parameter_is_a_bad_request_that_names_it(stream: bool) -> None:
    async with talking(json_reply(NO_TOOL, 400)) as (stand, client):
        error = await asked(client, stream=stream)
        assert len(stand.upstream.requests) == 1
    assert isinstance(error, openai.BadRequestError)
    assert (error.type, error.param, error.code) == (
        "invalid_request_error",
        "tools[0].type",
        "invalid_value",
    )
    assert error.body == NO_TOOL["error"]


async def test_rate_limit_is_a_rate_limit_with_its_wait_and_without_names_of_accounts() -> None:
    async with talking(json_reply(BUSY, 429, **{"retry-after": "42"}), max_attempts=1) as (_, client):
        error = await asked(client)
    assert isinstance(error, openai.RateLimitError)
    assert error.response.headers["retry-after"] == "42"
    assert "Rate limit reached" in error.message and "org-secret" not in error.message


async def test_rate_limit_is_shown_when_the_fallback_is_not_in_order() -> None:
    async with talking(json_reply(BUSY, 429, **{"retry-after": "42"})) as (stand, client):
        stand.other.script = json_reply(WRONG_KEY, 401)
        error = await asked(client, "first")
    assert (error.status_code, error.response.headers["retry-after"]) == (429, "42")


async def test_refusal_of_the_model_asked_is_shown_and_not_the_trouble_of_its_fallback() -> None:
    async with talking(json_reply(NO_TOOL, 400)) as (stand, client):
        stand.other.script = json_reply(BUSY, 503)
        error = await asked(client, "first")
    assert (error.status_code, error.code) == (400, "invalid_value")


async def test_wrong_key_of_the_router_is_not_the_clients_and_not_worth_a_retry() -> None:
    async with talking(json_reply(WRONG_KEY, 401)) as (_, client):
        error = await asked(client)
    assert (error.status_code, error.code) == (502, "upstream_misconfigured")
    assert error.response.headers["x-should-retry"] == "false"
    assert "abcd" not in error.message and "operator" in error.message


@pytest.mark.parametrize("model", ["alone", "r2"])
async def test_prompt_that_is_too_long_has_openais_code_direct_and_routed(model: str) -> None:
    async with talking(json_reply(TOO_LONG, 400)) as (stand, client):
        stand.other.script = json_reply(TOO_LONG, 400)
        error = await asked(client, model)
    assert isinstance(error, openai.BadRequestError)
    assert error.code == "context_length_exceeded"
    assert isinstance(error.body, dict) and error.body["message"] == TOO_LONG["error"]["message"]


async def test_refused_inner_step_is_not_the_clients_fault_and_not_worth_a_retry() -> None:
    steps = [{"id": 1, "text": "one"}, {"id": 2, "text": "two", "depends_on": [1]}]
    asked_for = {"plan": {"subtasks": steps}, "models": {"1": "alone", "2": "second"}}
    async with talking(json_reply(NO_TOOL, 400)) as (_, client):
        error = await asked(client, "r2", extra_body={"r2": asked_for})
    assert (error.status_code, error.code) == (502, "subtask_failed")
    assert error.response.headers["x-should-retry"] == "false"


async def test_error_within_a_stream_has_the_same_kind() -> None:
    script = events(chunk("so "), NO_TOOL)
    async with talking(script) as (_, client):
        stream: Any = await client.chat.completions.create(model="alone", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert (caught.value.type, caught.value.param, caught.value.code) == (
        "invalid_request_error",
        "tools[0].type",
        "invalid_value",
    )


BROKEN: dict[str, Any] = {"error": {"message": "The server had an error"}}


async def test_failure_of_a_provider_names_the_model_and_what_the_query_cost() -> None:
    """A virtual model asks several models, and a failed call may be billed."""
    async with talking(json_reply(BROKEN, 500), max_attempts=1) as (stand, client):
        stand.other.script = json_reply(BROKEN, 500)
        error = await asked(client, "r2", extra_body={"r2": {"policy": "one:first"}})
    assert re.search("(first|second|alone): the provider answered 500: The server had an", error.message)
    (trace,) = stand.traces
    assert trace.cost_usd > 0
    assert error.response.headers["x-r2-cost-usd"] == f"{trace.cost_usd:f}"


async def test_error_before_any_call_has_no_cost() -> None:
    async with talking(json_reply(BROKEN, 500)) as (_, client):
        error = await asked(client, "first", extra_body={"max_tokens": 10**9})
    assert error.status_code == 400
    assert "x-r2-cost-usd" not in error.response.headers


async def test_error_names_a_field_as_the_dialect_of_the_client_does() -> None:
    async with talking(json_reply(BROKEN, 500)) as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="alone", input=[])
    assert caught.value.param == "input"
    assert "input: got an array of 0, expected at least 1 item" in caught.value.message


async def test_what_only_one_api_can_say_is_refused_with_the_kind_of_engine_that_takes_it() -> None:
    body = {"model": "r2", "max_tokens": 9, "messages": [*HELLO, {"role": "assistant", "content": "The"}]}
    async with standing(json_reply(BROKEN, 500)) as stand:
        reply = await stand.client.post("/v1/messages", json=body)
    message = reply.json()["error"]["message"]
    assert "no model of 'r2' is run by an engine of kind anthropic, which alone takes this" in message
