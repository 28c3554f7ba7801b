"""POST /v1/completions and /v1/embeddings: they pass to hosted models; the real `openai` client asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from r2_serve.errors import InvalidRequest
from r2_serve.types import Sampling
from tests.http.test_api import error_of
from tests.http.test_keys import Keys, serving
from tests.support import text_provider as provider
from tests.support.hosted_stand import Stand, standing
from tests.support.in_process import Router, query
from tests.support.messages_stand import messages_stand
from tests.support.served_app import openai_client
from tests.support.upstream import Script


@asynccontextmanager
async def talking(**limits: Any) -> AsyncIterator[tuple[Stand, AsyncOpenAI]]:
    async with standing(provider.answer, **limits) as stand, openai_client(stand.app) as client:
        yield stand, client


# -- completions --


async def test_completion_passes_with_echo_logprobs_and_suffix() -> None:
    asked: Any = {"echo": True, "logprobs": 2, "suffix": "!", "n": 2, "best_of": 3, "logit_bias": {"5": -1}}
    async with talking() as (stand, client):
        reply = await client.completions.create(
            model="alone", prompt="two plus", max_tokens=7, temperature=0.5, stop=["."], **asked
        )
    (sent,) = stand.upstream.requests
    assert sent["_path"] == "/v1/completions"
    assert {key: sent[key] for key in asked} == asked
    assert (sent["prompt"], sent["max_tokens"], sent["stop"]) == ("two plus", 7, ["."])
    assert "messages" not in sent
    assert [(c.index, c.text, c.finish_reason) for c in reply.choices] == [
        (0, "two plus four", "length"),
        (1, "two plus four", "length"),
    ]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.model_dump() == provider.LOGPROBS
    assert (reply.object, reply.model, reply.system_fingerprint) == ("text_completion", "alone", "fp_1")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1000, 60)
    cost = Decimal((reply.model_extra or {})["r2"]["cost_usd"])
    assert cost == Decimal("0.15") / 1000 + Decimal("0.6") * 60 / 1_000_000


async def test_streamed_completion_passes_piece_by_piece() -> None:
    async with talking() as (stand, client):
        stream = await client.completions.create(
            model="alone", prompt="two plus", stream=True, logprobs=1, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert stand.upstream.requests[0]["stream_options"] == {"include_usage": True}
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == " four"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * 5 + ["length"]
    assert chunks[0].choices[0].logprobs is not None
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("text_completion", "alone")}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 60
    assert (chunks[-1].model_extra or {})["r2"]["models"] == ["alone"]


@pytest.mark.parametrize("prompt", [["one", "two"], [5, 6, 7], [[5, 6], [7]]])
async def test_several_prompts_and_tokens_pass_as_they_came(prompt: Any) -> None:
    async with talking() as (stand, client):
        await client.completions.create(model="alone", prompt=prompt)
    assert stand.upstream.requests[0]["prompt"] == prompt


async def test_virtual_model_answers_the_prompt_as_a_message() -> None:
    async with talking() as (stand, client):
        reply = await client.completions.create(model="r2", prompt="two plus two")
        chunks = [
            chunk
            async for chunk in await client.completions.create(model="r2", prompt="two plus two", stream=True)
        ]
    assert {request["_path"] for request in stand.upstream.requests} == {"/v1/chat/completions"}
    assert reply.choices[0].text.strip() == "by chat"
    assert (reply.object, reply.choices[0].finish_reason) == ("text_completion", "stop")
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (chunks[-1].model_extra or {})["r2"]["models"]


async def test_every_chunk_has_a_choice_unless_usage_is_asked_for() -> None:
    async with talking() as (_, client):
        for model in ("alone", "r2"):
            chunks = await client.completions.create(model=model, prompt="two plus", stream=True)
            assert all([chunk.choices async for chunk in chunks])


@pytest.mark.parametrize("stream", [False, True])
async def test_completion_hides_what_its_provider_said_in_another_dialect(stream: bool) -> None:
    async with messages_stand() as stand:
        body = {"model": "r2", "prompt": "two plus", "stream": stream, "r2": {"policy": "one:claude"}}
        reply = await stand.client.post("/v1/completions", json=body)
    assert reply.status_code == 200
    assert stand.anthropic.requests
    assert "messages_api" not in reply.text
    assert "claude-real" not in reply.text


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        ("r2", {"prompt": ["one", "two"]}, "prompt"),
        ("r2", {"prompt": "x", "echo": True}, "echo"),
        ("r2", {"prompt": "x", "logprobs": 2}, "logprobs"),
        ("alone", {}, "prompt"),
        ("alone", {"prompt": []}, "prompt"),
        ("alone", {"prompt": 5}, "prompt"),
        ("alone", {"prompt": "x", "temperature": 9}, "temperature"),
        ("alone", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ],
)
async def test_what_a_completion_cannot_be_is_refused_by_name(model: str, body: Any, param: str) -> None:
    async with standing(provider.answer) as stand:
        response = await stand.client.post("/v1/completions", json={"model": model, **body})
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not stand.upstream.requests


# -- embeddings --


@pytest.mark.parametrize(
    ("given", "num_vectors"), [("a text", 1), (["a", "b", "c"], 3), ([5, 6, 7], 1), ([[5, 6], [7]], 2)]
)
async def test_embeddings_pass_in_the_encoding_of_the_client_and_are_billed(
    given: Any, num_vectors: int
) -> None:
    async with talking() as (stand, client):
        reply = await client.embeddings.create(model="alone", input=given, dimensions=3)
    (sent,) = stand.upstream.requests
    assert (sent["_path"], sent["model"], sent["input"]) == ("/v1/embeddings", "alone", given)
    assert (sent["dimensions"], sent["encoding_format"]) == (3, "base64"), "as the client asks by default"
    assert sent.keys().isdisjoint({"messages", "max_tokens", "stream", "temperature"})
    assert [tuple(entry.embedding) for entry in reply.data] == [provider.VECTOR] * num_vectors
    assert (reply.model, reply.usage.prompt_tokens, reply.usage.total_tokens) == ("alone", 2000, 2000)
    assert Decimal((reply.model_extra or {})["r2"]["cost_usd"]) == Decimal("0.0003")


async def test_embeddings_as_numbers_and_shapes_of_other_providers_pass() -> None:
    multimodal = [{"content": [{"type": "text", "text": "x"}]}]
    async with standing(provider.answer) as stand:
        asked = {"model": "alone", "input": multimodal, "input_type": "query", "encoding_format": "float"}
        response = await stand.client.post("/v1/embeddings", json=asked)
    assert response.json()["data"] == [
        {"object": "embedding", "index": 0, "embedding": list(provider.VECTOR)}
    ]
    (sent,) = stand.upstream.requests
    assert (sent["input"], sent["input_type"]) == (multimodal, "query")
    assert response.headers["x-r2-models"] == "alone"


async def test_keys_limits_and_budgets_hold_and_the_call_is_measured(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    poor = keys.add("poor", models=["alone"], budget_usd="0.0004")
    async with standing(provider.answer) as stand, serving(stand.router, keys) as client:

        async def ask(path: str, model: str, **body: Any) -> Any:
            return await client.post(path, json={"model": model, **body}, headers={"authorization": poor})

        refused = await ask("/v1/embeddings", "first", input="x")
        assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_found")
        assert (await ask("/v1/embeddings", "alone", input="x")).status_code == 200
        spent = await ask("/v1/embeddings", "alone", input="x " * 2_000)
        assert (spent.status_code, error_of(spent)["code"]) == (429, "insufficient_quota")
        spent = await ask("/v1/completions", "alone", prompt="x", max_tokens=1_000)
        assert (spent.status_code, error_of(spent)["code"]) == (429, "insufficient_quota")
        page = stand.metrics.render().decode()
    assert len(stand.upstream.requests) == 1
    assert 'r2_calls_total{model="alone",outcome="ok",stage="pass_through"} 1.0' in page


async def test_refused_embeddings_keep_the_kind_of_the_error() -> None:
    async with talking() as (stand, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="alone", input="too long")
        with pytest.raises(openai.APIStatusError) as broken:
            await client.embeddings.create(model="alone", input="broken")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert broken.value.code == "invalid_upstream_reply"
    assert stand.traces[0].cost_usd == 0


async def test_embeddings_fall_back_as_chat_does() -> None:
    def down(request: dict[str, Any]) -> Script:
        return Script([b"{}"], status=503)

    async with standing(down) as stand:
        stand.other.script = provider.answer
        response = await stand.client.post("/v1/embeddings", json={"model": "first", "input": "x"})
    assert response.status_code == 200
    assert response.json()["r2"]["models"] == ["second"]
    assert stand.other.requests[0]["_path"] == "/v1/embeddings"


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        ("alone", {}, "input"),
        ("alone", {"input": []}, "input"),
        ("alone", {"input": "x", "stream": True}, "stream"),
        ("alone", {"input": "x", "base_url": "http://x"}, "base_url"),
    ],
)
async def test_what_embeddings_cannot_be_is_refused_by_name(model: str, body: Any, param: str) -> None:
    async with standing(provider.answer) as stand:
        response = await stand.client.post("/v1/embeddings", json={"model": model, **body})
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not stand.upstream.requests


async def test_virtual_model_makes_no_embeddings() -> None:
    router = Router()
    asked = Sampling(api="embeddings", forwarded={"input": "x"})
    with pytest.raises(InvalidRequest, match="'r2' routes conversations") as caught:
        await router.pipeline.answer(query(sampling=asked))
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "asked", [{"echo": True}, {"suffix": "."}, {"best_of": 2}, {"logprobs": 0}, {"prompt": ["a", "b"]}]
)
async def test_virtual_model_refuses_what_only_text_completions_have(asked: Any) -> None:
    router = Router()
    with pytest.raises(InvalidRequest, match="'r2' answers one prompt") as caught:
        await router.pipeline.answer(query(sampling=Sampling(api="completions", forwarded=asked)))
    assert caught.value.param == next(iter(asked))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions"])
@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"'])
async def test_body_that_is_no_object_is_refused(path: str, body: bytes) -> None:
    async with standing(provider.answer) as stand:
        response = await stand.client.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")
