"""Clients of chat completions and routed queries, answered by a provider that speaks Messages."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from r2_serve.config import HostedEngineConfig
from r2_serve.engines.hosted import HostedEngine
from r2_serve.errors import AnswerWithheld, EngineRefused
from r2_serve.types import EngineCall, Message, Sampling
from tests.http.test_api import error_of
from tests.http.test_pass_through import ASKED, TOOL, results_of
from tests.support import messages_provider as provider
from tests.support.messages_stand import messages_stand
from tests.support.served_app import openai_client
from tests.support.upstream import running_upstream

HI: Any = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 60, "total_tokens": 1060}


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_client_runs_a_tool_loop(stream: bool) -> None:
    async def turn(messages: Any) -> Any:
        asked: Any = {"model": "claude", "messages": messages, "tools": [TOOL], "user": "u"}
        if not stream:
            return await client.chat.completions.create(**asked)
        options = {"include_usage": True}
        async with client.chat.completions.stream(**asked, stream_options=options) as events:
            return await events.get_final_completion()

    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": ASKED[0]["content"]}]
    async with messages_stand() as stand, openai_client(stand.app) as client:
        first = await turn(asked)
        message: Any = first.choices[0].message
        second = await turn([*asked, message, *results_of(message)])
        one, two = stand.anthropic.requests
    assert (first.choices[0].finish_reason, second.choices[0].finish_reason) == ("tool_calls", "stop")
    assert second.choices[0].message.content == "sun in Oslo and sun in Rome"
    assert second.usage.model_dump().items() >= USAGE.items()
    assert second.usage.prompt_tokens_details.cached_tokens == 700
    assert second.usage.completion_tokens_details.reasoning_tokens == 40
    assert one["system"] == [{"type": "text", "text": "Be short."}]
    assert one["metadata"] == {"user_id": "u"}
    assert one["tools"][0]["input_schema"] == TOOL["function"]["parameters"]
    assert [turn["role"] for turn in two["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in two["messages"][1]["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["content"] for block in two["messages"][2]["content"]] == ["sun in Oslo", "sun in Rome"]


async def test_chat_client_gets_thoughts_and_no_key_of_another_dialect() -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    async with messages_stand() as stand:
        body = {"messages": [{"role": "user", "content": "hi"}], "thinking": thinking, "max_tokens": 9000}
        response = await stand.ask("claude", "/v1/chat/completions", **body)
        streamed = await stand.ask("claude", "/v1/chat/completions", stream=True, **body)
    completion = response.json()
    message = completion["choices"][0]["message"]
    assert message["thinking_blocks"] == [provider.THOUGHT, provider.REDACTED]
    assert (message["content"], message["reasoning_content"]) == ("four", "two and two")
    assert completion.keys() == {"id", "object", "created", "model", "choices", "usage", "r2"}
    assert "messages_api" not in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("presence_penalty", 0.5), ("verbosity", "low")])
async def test_what_messages_cannot_say_is_refused_by_name(name: str, value: object) -> None:
    async with messages_stand() as stand:
        response = await stand.ask("claude", "/v1/chat/completions", **{name: value})
        assert not stand.anthropic.requests
    assert (response.status_code, error_of(response)["param"]) == (400, name)
    assert stand.traces[0].cost_usd == 0


@pytest.mark.parametrize("name", ["n", "logprobs", "logit_bias"])
async def test_what_the_card_lacks_is_refused_before_any_call(name: str) -> None:
    value: Any = {"n": 2, "logprobs": True, "logit_bias": {"1": 1}}[name]
    async with messages_stand() as stand:
        response = await stand.ask("claude", "/v1/chat/completions", **{name: value})
    assert error_of(response)["param"] == name
    assert "ask one of ['gpt']" in error_of(response)["message"]


async def test_openais_client_reads_the_errors_of_anthropic() -> None:
    async with messages_stand() as stand, openai_client(stand.app) as client:
        stand.anthropic.script = provider.error(400, "prompt is too long: 208310 tokens > 200000 maximum")
        with pytest.raises(openai.BadRequestError) as overflow:
            await client.chat.completions.create(model="claude", messages=HI)
        stand.anthropic.script = provider.error(429, "slow down")
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await client.chat.completions.create(model="claude", messages=HI)
    assert overflow.value.code == "context_length_exceeded"


@pytest.mark.parametrize("key", [None, "sk-ant-secret"])
async def test_engine_sends_its_key_and_the_version_in_anthropics_headers(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", key or "")
    async with messages_stand(api_key_env=key and "ANTHROPIC_API_KEY") as stand:
        stand.client.headers["x-api-key"] = "the client's own"
        await stand.ask()
        headers = stand.anthropic.requests[0]["_headers"]
    assert headers.get("x-api-key") == key
    assert headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in headers


def test_address_is_anthropics_unless_another_is_given() -> None:
    engine = HostedEngineConfig(kind="anthropic", model="claude")
    assert engine.base_url == "https://api.anthropic.com/v1"
    other = HostedEngineConfig(kind="anthropic", model="claude", base_url="https://x/anthropic/v1")
    assert other.base_url == "https://x/anthropic/v1"


async def test_reply_limit_is_32000_unless_the_client_or_the_card_asks_another() -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    async with messages_stand() as stand:
        await stand.ask("claude", "/v1/chat/completions", **{**asked, "max_tokens": None})
        await stand.ask("claude", "/v1/chat/completions", **{**asked, "max_tokens": 7})
        limits = [request["max_tokens"] for request in stand.anthropic.requests]
    assert limits == [32_000, 7]


@pytest.mark.parametrize("stream", [False, True])
async def test_step_of_a_plan_gets_the_text_alone(stream: bool) -> None:
    async with running_upstream() as upstream:
        upstream.script = provider.answer
        config = HostedEngineConfig(kind="anthropic", model="m", base_url=upstream.base_url)
        engine = HostedEngine(config)

        async def text_of(**forwarded: Any) -> str:
            sampling = Sampling(forwarded=forwarded, logprobs=True)
            call = EngineCall(messages=(Message(role="user", content="hi"),), sampling=sampling)
            if not stream:
                return (await engine.generate(call)).text
            return "".join([piece.text async for piece in engine.stream(call)])

        try:
            assert await text_of(thinking={"type": "enabled", "budget_tokens": 1024}) == "four"
            with pytest.raises(AnswerWithheld):
                await text_of(tools=[TOOL])
            with pytest.raises(EngineRefused) as refused:
                await text_of(n=2)
        finally:
            await engine.aclose()
    assert (refused.value.param, refused.value.is_free) == ("n", True)
