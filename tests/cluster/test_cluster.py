"""The whole router on a real local Ray cluster, with scripted models, through the real openai client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import openai
import pytest

from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import load
from tests.support.scripted_pool import LARGE, SMALL, scripted_yaml

pytestmark = [pytest.mark.ray, pytest.mark.smoke]

HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("cluster") / "serve_config.yaml"
    path.write_text(scripted_yaml())
    with local_cluster(load(path), port=free_port(), num_cpus=4) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_query_is_decomposed_allocated_executed_and_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="r2", messages=HI, extra_body={"r2": {"trace": True}}
    )
    reply = raw.parse()
    assert reply.choices[0].message.content == "the whole answer of four"
    trace = reply.model_extra["r2"]["trace"]
    assert [result["model"] for result in trace["results"]] == [SMALL, SMALL, LARGE]
    assert [call["stage"] for call in trace["calls"]] == [
        "decompose",
        "allocate",
        "execute",
        "execute",
        "execute",
    ]
    assert raw.headers["x-r2-plan-nodes"] == "3"
    assert raw.headers["x-r2-cost-usd"] == trace["cost_usd"] == reply.model_extra["r2"]["cost_usd"]
    assert sum(Decimal(call["cost_usd"]) for call in trace["calls"]) == Decimal(trace["cost_usd"]) > 0


def test_final_subtask_is_streamed_with_one_finish_reason_and_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="r2", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "the whole answer of four"
    assert [
        chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason
    ] == ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_pool_model_by_name_is_a_plain_pass_through(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=SMALL, messages=HI)
    assert reply.choices[0].message.content == "half"
    assert {model.id for model in client.models.list()} >= {"r2", SMALL, LARGE}


def test_errors_are_typed_for_the_openai_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="nope", messages=HI)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="r2", messages=HI, extra_body={"r2": {"max_cost_usd": 0.000001}})
    assert refused.value.code == "budget_exceeded"


def test_health_and_metrics_are_served_and_unknown_paths_are_refused(base_url: str) -> None:
    root = base_url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").status_code == 200
    assert httpx.get(f"{root}/health/ready").status_code == 200
    assert "r2_" in httpx.get(f"{root}/metrics").text
    assert set(httpx.get(f"{root}/nowhere").json()["error"]) == {"message", "type", "param", "code"}


BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "not JSON": (b"{", 400),
    "array": (b"[]", 400),
    "null": (b"null", 400),
    "not UTF-8": (b'{"model":"\xff"}', 400),
    "lone surrogate": (b'{"model":"\\ud800"}', 400),
    "depth": (b'{"model":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    "NaN": (b'{"model":"r2","messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400),
    "huge number": (b'{"model":"r2","seed":' + b"1" * 10_000 + b"}", 400),
    "wrong types": (b'{"model":1,"messages":"x"}', 400),
    "upstream": (b'{"model":"r2","messages":[{"role":"user","content":"x"}],"api_base":"http://x"}', 400),
    "40 MB": (b'{"model":"' + b"x" * 40_000_000 + b'"}', 413),
}


@pytest.mark.parametrize(("body", "status"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_malformed_requests_are_refused_through_serves_proxy(base_url: str, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json", "x-request-id": "mine"}
    response = httpx.post(f"{base_url}/chat/completions", content=body, headers=headers, timeout=60)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_other_content_types_are_refused_through_serves_proxy(base_url: str) -> None:
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        response = httpx.post(f"{base_url}/chat/completions", content=b"{}", headers=headers, timeout=60)
        assert response.status_code == 415 and response.json()["error"]["code"] == "unsupported_media_type"


async def test_killed_model_replica_fails_no_query(base_url: str) -> None:
    """Requests in flight on the replica are tried again, by the fallback if necessary."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120) as client:

        async def one() -> str | None:
            return (await client.chat.completions.create(model="r2", messages=HI)).choices[0].message.content

        async with asyncio.TaskGroup() as group:
            before = [group.create_task(one()) for _ in range(10)]
            group.create_task(asyncio.to_thread(_kill_replica_of, "m-small"))
            after = [group.create_task(one()) for _ in range(10)]
    assert {task.result() for task in [*before, *after]} == {"the whole answer of four"}


def _kill_replica_of(app: str) -> None:
    """Sends SIGKILL to the replica's process, found by the actor's pid in Ray's state."""
    from ray._private.state import actors

    alive = [
        actor for actor in actors().values() if actor["State"] == "ALIVE" and f"{app}#Model" in actor["Name"]
    ]
    pids = [actor["Pid"] for actor in alive]
    assert pids, f"no replica of {app} is alive"
    os.kill(int(pids[0]), signal.SIGKILL)
