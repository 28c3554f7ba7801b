"""Every bound of a request is a config field; a request beyond it is refused before any model is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from starlette.types import Message

from r2_serve.config import HostedEngineConfig, LimitsConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineUnavailable
from r2_serve.http.api import create_app
from r2_serve.router.checks import most_chars
from r2_serve.router.router import in_process
from r2_serve.types import EngineCall
from tests.http.test_api import error_of
from tests.support.hosted_stand import healthy, standing
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.scripted_backend import chat_body

WIDE = plan_json("a", "b", "c", "d")
DEEP = plan_json("a", "b #1", "c #2", "d #3")


class Endpoint:
    """The real router behind the real HTTP layer, over scripted models."""

    def __init__(
        self, *, limits: dict[str, Any], plan: str = WIDE, small: Any = ("ok",), **server: Any
    ) -> None:
        replies = {
            "small": small,
            "large": ("ok",),
            "decomposer": (plan,),
            "allocator": (allocation_json(*["small"] * 4),),
        }
        self.engines = {
            name: reply if hasattr(reply, "generate") else ScriptedEngine(reply)
            for name, reply in replies.items()
        }
        config = RouterConfig(
            models=tuple(model(name, max_tokens=10) for name in self.engines), server=ServerConfig(**server)
        )
        router = in_process(
            config, routing(limits=LimitsConfig(**limits)), lambda card: self.engines[card.name]
        )
        self.app = create_app(router, config.server)

    async def ask(self, **parameters: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://r2") as client:
            return await client.post("/v1/chat/completions", json=chat_body(**parameters))

    @property
    def num_calls(self) -> int:
        return sum(len(engine.calls) for engine in self.engines.values())


def messages(number: int, text: str = "x") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}] * number


def own_plan(
    number: int, *, is_chain: bool = False, text: str = "x", answer: str | None = None
) -> dict[str, Any]:
    steps = [
        {"id": i, "text": text, "depends_on": [i - 1] if is_chain and i > 1 else []}
        for i in range(1, number + 1)
    ]
    return {"plan": {"subtasks": steps, "answer": answer}}


def asking_for(title: str) -> dict[str, Any]:
    """The prompt has a message of 12 characters and a response format of 87 characters plus `title`."""
    schema = {"name": "reply", "schema": {"title": title + "-----"}}
    return {
        "messages": messages(1, "x" * 12),
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


@pytest.mark.parametrize("asked", ["r2", "small"])
@pytest.mark.parametrize(
    ("field", "limit", "within", "beyond", "param"),
    [
        ("max_messages", 3, {"messages": messages(3)}, {"messages": messages(4)}, "messages"),
        (
            "max_query_chars",
            9,
            {"messages": messages(1, "x" * 9)},
            {"messages": messages(1, "x" * 10)},
            "messages",
        ),
        ("max_query_chars", 100, asking_for("x"), asking_for("xx"), "response_format"),
        ("max_tokens", 7, {"max_tokens": 7}, {"max_tokens": 8}, "max_tokens"),
        ("max_tokens", 7, {"max_completion_tokens": 7}, {"max_completion_tokens": 8}, "max_tokens"),
    ],
)
async def test_request_beyond_a_limit_costs_nothing(
    field: str, limit: int, within: Any, beyond: Any, param: str, asked: str
) -> None:
    endpoint = Endpoint(limits={field: limit})
    refused = await endpoint.ask(model=asked, **beyond)
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)
    assert str(limit) in error_of(refused)["message"]
    assert endpoint.num_calls == 0
    assert (await endpoint.ask(model=asked, **within)).status_code == 200


@pytest.mark.parametrize(
    ("field", "limit", "within", "beyond"),
    [
        ("max_subtasks", 3, own_plan(3), own_plan(4)),
        ("max_depth", 3, own_plan(3, is_chain=True), own_plan(4, is_chain=True)),
        ("max_subtask_chars", 5, own_plan(2, text="x" * 5), own_plan(2, text="x" * 6)),
        ("max_subtask_chars", 5, own_plan(2, answer="#1 #2"), own_plan(2, answer="#1, #2")),
    ],
)
async def test_client_plan_beyond_a_limit_costs_nothing(
    field: str, limit: int, within: Any, beyond: Any
) -> None:
    endpoint = Endpoint(limits={field: limit})
    refused = await endpoint.ask(r2={**beyond, "policy": "all:small"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "r2.plan")
    assert endpoint.num_calls == 0
    assert (await endpoint.ask(r2={**within, "policy": "all:small"})).status_code == 200


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"subtasks": [{"id": 1, "text": "x"}], "answer": "#1 " * 20}, "length"),
        ({"subtasks": [{"id": 1, "text": "x"}, {"id": 2, "text": "#1 " * 20, "depends_on": [1]}]}, "stop"),
    ],
)
async def test_many_references_to_a_long_answer_stay_bounded(plan: dict[str, Any], reason: str) -> None:
    """What is paid for is not refused: each use of the answer is shorter, and a cut template says so."""
    endpoint = Endpoint(limits={"max_query_chars": 1000}, small=("y" * 100,))
    reply = await endpoint.ask(r2={"plan": plan, "policy": "all:small"})
    (choice,) = reply.json()["choices"]
    assert (reply.status_code, choice["finish_reason"]) == (200, reason)
    filled = choice["message"]["content"] if "answer" in plan else endpoint.engines["small"].calls[1]
    assert filled if "answer" not in plan else filled.count("y") > 20 and len(filled) <= 1000


async def test_answers_used_once_each_may_be_longer_than_a_prompt() -> None:
    endpoint = Endpoint(limits={"max_query_chars": 150}, small=("y" * 100,))
    plan = {"subtasks": [{"id": 1, "text": "x"}, {"id": 2, "text": "x"}], "answer": "#1 #2"}
    reply = await endpoint.ask(r2={"plan": plan, "policy": "all:small"})
    assert reply.status_code == 200 and len(reply.json()["choices"][0]["message"]["content"]) == 201


@pytest.mark.parametrize("is_plan_only", [False, True])
async def test_response_format_with_a_template_answer_is_refused(is_plan_only: bool) -> None:
    plan = {"subtasks": [{"id": 1, "text": "x"}], "answer": "#1"}
    wanted = {"response_format": {"type": "json_object"}}
    if is_plan_only:
        endpoint = Endpoint(limits={}, plan=json.dumps(plan))
        assert (await endpoint.ask(r2={"plan_only": True}, **wanted)).status_code == 200
        return
    endpoint = Endpoint(limits={})
    refused = await endpoint.ask(r2={"plan": plan, "policy": "all:small"}, **wanted)
    assert (refused.status_code, error_of(refused)["param"], endpoint.num_calls) == (
        400,
        "response_format",
        0,
    )


@pytest.mark.parametrize(("field", "plan"), [("max_subtasks", WIDE), ("max_depth", DEEP)])
async def test_model_plan_beyond_a_limit_is_not_run(field: str, plan: str) -> None:
    reply = (await Endpoint(limits={field: 3}, plan=plan).ask()).json()["r2"]
    assert reply["subtasks"] == 1 and reply["plan_fallback"]
    assert (await Endpoint(limits={field: 4}, plan=plan).ask()).json()["r2"]["subtasks"] == 4


async def test_subtasks_running_at_once_stay_within_the_limit() -> None:
    num_running, most = 0, 0

    class Counting(ScriptedEngine):
        async def generate(self, call: EngineCall) -> Any:
            nonlocal num_running, most
            num_running += 1
            most = max(most, num_running)
            await asyncio.sleep(0)
            num_running -= 1
            return await super().generate(call)

    for limit in (1, 3):
        most = 0
        assert (await Endpoint(limits={"max_parallel": limit}, small=Counting()).ask()).json()["r2"][
            "subtasks"
        ] == 4
        assert most == limit


@pytest.mark.parametrize("max_attempts", [1, 2])
async def test_attempts_at_a_model_stay_within_the_limit(max_attempts: int) -> None:
    endpoint = Endpoint(limits={"max_attempts": max_attempts}, small=[EngineUnavailable("down", 0.001)])
    assert (await endpoint.ask(model="small")).status_code == 503
    assert endpoint.num_calls == max_attempts


@pytest.mark.parametrize(
    ("limits", "r2"),
    [
        ({"max_cost_usd": Decimal("0.00001")}, {}),
        ({}, {"max_cost_usd": "0.00001"}),
        ({"max_total_tokens": 30}, {}),
    ],
    ids=["the server's cost", "the request's cost", "tokens, the prompt's among them"],
)
@pytest.mark.parametrize("asked", ["r2", "small"])
async def test_request_that_could_cost_too_much_is_not_started(
    limits: dict[str, Any], r2: dict[str, Any], asked: str
) -> None:
    endpoint = Endpoint(limits=limits)
    refused = await endpoint.ask(model=asked, r2=r2)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "budget_exceeded")
    assert endpoint.num_calls == 0


@pytest.mark.parametrize(
    "limits", [{"max_cost_usd": Decimal("0.005")}, {"max_total_tokens": 10_000}], ids=["cost", "tokens"]
)
@pytest.mark.parametrize("asked", ["r2", "alone"])
async def test_json_schema_counts_as_part_of_the_prompt(limits: dict[str, Any], asked: str) -> None:
    """The request brings plan and model, so the only call is the one with the schema."""
    plan = (
        {"plan": {"subtasks": [{"id": 1, "text": "add"}]}, "models": {"1": "alone"}} if asked == "r2" else {}
    )

    async with standing(healthy, **limits) as stand:
        for num_chars, is_begun in ((10, True), (100_000, False)):
            schema = {"name": "reply", "schema": {"title": "x" * num_chars}}
            wanted = {"type": "json_schema", "json_schema": schema}
            body = {"model": asked, "messages": messages(1), "response_format": wanted, "r2": plan}
            response = await stand.client.post("/v1/chat/completions", json=body)
            assert (response.status_code == 200) == is_begun
        assert error_of(response)["code"] == "budget_exceeded"
        assert len(stand.upstream.requests) == 1
        assert stand.traces[-1].cost_usd == 0


async def test_request_cannot_raise_the_limits_of_the_server() -> None:
    endpoint = Endpoint(limits={"max_cost_usd": Decimal("0.00001"), "max_subtasks": 3})
    dear = await endpoint.ask(model="small", r2={"max_cost_usd": 1000})
    wide = await endpoint.ask(r2={**own_plan(4), "max_subtasks": 100})
    assert error_of(dear)["code"] == "budget_exceeded" and error_of(wide)["param"] == "r2.plan"
    assert endpoint.num_calls == 0


async def test_calls_of_a_request_stay_within_the_limit() -> None:
    endpoint = Endpoint(limits={"max_calls": 4})
    reply = await endpoint.ask()
    assert reply.status_code == 200 and endpoint.num_calls == 3, "plan, allocation and one call for it all"
    refused = await endpoint.ask(r2={**own_plan(5), "policy": "all:small"})
    assert error_of(refused)["code"] == "budget_exceeded"
    assert endpoint.num_calls == 3


@pytest.mark.parametrize("n", [0, 2, 128])
async def test_reply_has_exactly_one_choice(n: int) -> None:
    endpoint = Endpoint(limits={})
    refused = await endpoint.ask(n=n)
    assert (refused.status_code, error_of(refused)["param"], endpoint.num_calls) == (400, "n", 0)


async def test_prompt_is_limited_by_the_longest_context_that_may_read_it() -> None:
    """A context that is not known limits nothing: the provider knows its own."""
    long = messages(1, "x" * 250_000)
    async with standing(healthy) as stand:
        for name in ("r2", "alone"):
            response = await stand.client.post("/v1/chat/completions", json={"model": name, "messages": long})
            assert response.status_code == 200
    card = model("m", context_tokens=100_000)
    hosted = card.model_copy(update={"engine": HostedEngineConfig(kind="openai", model="m")})
    assert (card.query_chars, hosted.query_chars) == (800_000, 800_000)
    small = model("s", context_tokens=1_000)
    assert most_chars([small, card]) == 800_000
    assert most_chars([card, model("h", engine=hosted.engine)]) is None


async def test_body_is_not_read_beyond_its_limit() -> None:
    endpoint = Endpoint(limits={}, max_body_bytes=1_000)
    assert (await endpoint.ask(messages=messages(1, "x" * 1_000))).status_code == 413
    assert (await endpoint.ask(messages=messages(1, "x" * 900))).status_code == 200


async def test_slow_body_is_refused_after_its_timeout() -> None:
    endpoint = Endpoint(limits={}, body_timeout_s=0.05)

    async def drip() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint.app), base_url="http://r2") as client:
        refused = await client.post(
            "/v1/chat/completions", content=drip(), headers={"content-type": "application/json"}
        )
    assert (refused.status_code, refused.headers["connection"]) == (408, "close")
    assert "within 0.05 s" in error_of(refused)["message"]
    assert endpoint.num_calls == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health", "/nowhere"])
async def test_websocket_is_refused_before_it_is_accepted(path: str) -> None:
    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await Endpoint(limits={}).app(
        {"type": "websocket", "path": path, "headers": [], "subprotocols": []}, receive, send
    )
    assert [message["type"] for message in sent] == ["websocket.close"]
