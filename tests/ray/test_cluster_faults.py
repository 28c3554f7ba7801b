"""Faults on a real local Ray cluster: replicas, controller and proxy killed, poison, overload, clients that
leave.

Times are asserted only where an operator was promised them; a loaded machine of two cores keeps them with
room.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import ServeConfig, load
from r2_serve.types import Trace
from tests.support.scraped import total
from tests.support.scripted_pool import LARGE, SMALL, scripted_yaml
from tests.support.upstream import Script, Upstream, chunk, sse, upstream_in_thread

pytestmark = pytest.mark.ray

ANSWER = "the whole answer of four"
POISON = "poison"
PATIENCE_S = 120.0
"""The limit for events that must come, without a promise of their time."""


@dataclass(frozen=True)
class Cluster:
    url: str
    upstream: Upstream

    @asynccontextmanager
    async def client(self, prefix: str = "") -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.url + prefix, timeout=PATIENCE_S, limits=limits, trust_env=False
        ) as client:
            yield client


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The scripted pool with `remote` at a provider in this process, and a narrow router at /narrow."""
    with upstream_in_thread() as upstream:
        remote = {
            "name": "remote",
            "usd_per_mtok_in": "1",
            "usd_per_mtok_out": "2",
            "engine": {"kind": "openai", "model": "m", "base_url": upstream.base_url},
        }
        all_small = {
            "pool": [SMALL, LARGE],
            "decomposer": {"model": SMALL, "num_samples": 1},
            "allocator": {"model": SMALL},
            "plan": "always",
        }
        path: Path = tmp_path_factory.mktemp("cluster") / "serve_config.yaml"
        path.write_text(
            scripted_yaml(
                delay_s={SMALL: 1.5, LARGE: 0.3},
                dies_on={SMALL: POISON, LARGE: POISON},
                more_models=[remote],
                more_virtual={"r2-small": all_small},
                virtual={"pool": [SMALL, "remote", LARGE]},
                limits={"cooldown": {"first_s": 1, "longest_s": 2}},
            )
        )
        config = load(path)
        port = free_port()
        with local_cluster(config, port=port, num_cpus=4) as url:
            _run_narrow_router(config)
            yield Cluster(url.removesuffix("/v1"), upstream)


def _run_narrow_router(config: ServeConfig) -> None:
    from ray import serve

    from r2_serve.app import bind_router

    server = config.router.server.model_copy(update={"max_running": 8, "max_queued": 8})
    free = {"ray_actor_options": {"num_cpus": 0}}
    options = {
        "Router": {**free, "user_config": config.routing.model_dump(mode="json")},
        "Decomposer": free,
        "Allocator": free,
    }
    router = replace(config, router=config.router.model_copy(update={"server": server})).router
    serve.run(bind_router(router, options), name="narrow", route_prefix="/narrow")


def body(model: str = "r2", text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "r2": {"trace": True}, **fields}


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body(**fields))


def answer_of(response: httpx.Response) -> tuple[str, Trace]:
    """Text and trace of a reply, plain or streamed. Raises: AssertionError for an error or a cut stream."""
    assert response.status_code == 200, response.text
    if "event-stream" not in response.headers["content-type"]:
        reply = response.json()
        return reply["choices"][0]["message"]["content"], Trace.model_validate(reply["r2"]["trace"])
    assert response.text.endswith("data: [DONE]\n\n"), response.text
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: {")
    ]
    text = "".join(choice["delta"].get("content", "") for item in chunks for choice in item["choices"])
    return text, Trace.model_validate(chunks[-1]["r2"]["trace"])


def error_of(response: httpx.Response) -> dict[str, str | None]:
    """The error of a refusal.

    A stream with a heartbeat is a 200 already; its last event is the error then.
    """
    if "event-stream" in response.headers["content-type"]:
        *_, last = response.text.removesuffix("\n\n").split("\n\n")
        reply = json.loads(last.removeprefix("data: "))
    else:
        assert response.status_code >= 400, response.text
        reply = response.json()
    error: dict[str, str | None] = reply["error"]
    return error


async def until(is_so: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> float:
    """Waits for a condition; the seconds it took. Raises: TimeoutError."""
    start_s = time.monotonic()
    async with asyncio.timeout(patience_s):
        while True:
            try:
                if await is_so():
                    return time.monotonic() - start_s
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)


async def running(client: httpx.AsyncClient) -> int:
    """The number of requests at work in the router."""
    text = (await client.get("/metrics")).text
    assert "r2_requests_running{" in text
    return int(total(text, "r2_requests_running"))


def actors(name_part: str, state: str = "ALIVE") -> list[dict[str, Any]]:
    from ray._private.state import actors as all_actors

    return [
        actor for actor in all_actors().values() if actor["State"] == state and name_part in actor["Name"]
    ]


def kill(name_part: str) -> None:
    (actor,) = actors(name_part)
    os.kill(int(actor["Pid"]), signal.SIGKILL)


def kill_haproxy() -> None:
    """The pid of the process that clients are connected to, a child of Serve's proxy actor."""
    children = [
        child
        for actor in actors("SERVE_PROXY_ACTOR")
        for child in psutil.Process(int(actor["Pid"])).children(recursive=True)
    ]
    (process,) = [child for child in children if child.name() == "haproxy"]
    process.kill()


async def answers_itself(client: httpx.AsyncClient, model: str) -> bool:
    """True if `model` answers and not its fallback."""
    response = await ask(client, model=model)
    return response.status_code == 200 and response.headers["x-r2-models"] == model


async def test_killed_replicas_fail_no_query_and_no_subtask_runs_twice(cluster: Cluster) -> None:
    """There are three rounds with 20 queries in flight, half of them streamed."""
    answered_s, recovered_s = list[float](), list[float]()
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        for _ in range(3):
            queries = [asyncio.create_task(ask(client, stream=i % 2 == 0)) for i in range(20)]
            await until(lambda: _at_least(client, 20))
            kill(f"m-{SMALL}#Model")
            killed_s = time.monotonic()
            for query in asyncio.as_completed(queries):
                text, trace = answer_of(await query)
                assert text == ANSWER
                answered = Counter(
                    call.subtask for call in trace.calls if call.stage == "execute" and call.outcome == "ok"
                )
                assert answered == {1: 1, 2: 1, 3: 1}
                assert trace.cost_usd == sum((call.cost_usd for call in trace.calls), Decimal(0))
            answered_s.append(time.monotonic() - killed_s)
            await until(lambda: answers_itself(client, SMALL))
            recovered_s.append(time.monotonic() - killed_s)
    shown = [", ".join(f"{seconds:.1f}" for seconds in series) for series in (answered_s, recovered_s)]
    print(f"kill -9 of a model replica: the 20 queries in flight answered after {shown[0]} s,")
    print(f"the replica replaced after {shown[1]} s")


async def _at_least(client: httpx.AsyncClient, count: int) -> bool:
    return await running(client) >= count


async def test_poisonous_prompt_kills_two_replicas_and_other_traffic_continues(
    cluster: Cluster,
) -> None:
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        await until(lambda: answers_itself(client, LARGE))
        dead_before = len(actors("#Model", "DEAD"))
        others: list[httpx.Response] = []
        poison = asyncio.Event()

        async def traffic() -> None:
            while not poison.is_set() or len(others) < 40:
                others.append(await ask(client, model=SMALL))

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(traffic())
            await until(lambda: _at_least(client, 6))
            refused = await ask(client, model=SMALL, text=f"a {POISON} for you")
            poison.set()
        await until(lambda: answers_itself(client, SMALL))
        await until(lambda: answers_itself(client, LARGE))
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "poisonous_request")
        assert len(actors("#Model", "DEAD")) - dead_before <= 2
        statuses = Counter(response.status_code for response in others)
        assert statuses[200] >= 0.95 * len(others), statuses


async def test_poisonous_routed_query_kills_two_replicas_at_most(cluster: Cluster) -> None:
    """The planner survives the prompt; the subtask with the poison kills its replicas."""
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        await until(lambda: answers_itself(client, LARGE))
        dead_before = len(actors("#Model", "DEAD"))
        plan = {"subtasks": [{"id": 1, "text": f"drink the {POISON}", "depends_on": []}]}
        response = await client.post(
            "/v1/chat/completions", json={**body(stream=True), "r2": {"plan": plan, "policy": f"all:{SMALL}"}}
        )
        assert (error_of(response)["type"], error_of(response)["code"]) == (
            "invalid_request_error",
            "poisonous_request",
        )
        assert len(actors("#Model", "DEAD")) - dead_before <= 2


async def test_calls_of_a_failed_decomposer_are_in_the_ledger_of_the_router(cluster: Cluster) -> None:
    """The model dies twice while the decomposer works; the decomposer reports both calls with the error."""

    async def calls() -> float:
        return total(
            (await client.get("/metrics")).text, "r2_calls_total", stage="decompose", outcome="failed"
        )

    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        await until(lambda: answers_itself(client, LARGE))
        calls_before = await calls()
        response = await ask(client, model="r2-small", text=f"drink the {POISON}")
        assert (response.status_code, error_of(response)["code"]) == (422, "poisonous_request")
        assert await calls() == calls_before + 2


async def test_overload_is_refused_and_leaves_the_router_healthy(cluster: Cluster) -> None:
    """200 requests come at once; 8 may work and 8 may wait."""
    async with cluster.client("/narrow") as client:
        await until(lambda: answers_itself(client, LARGE))
        is_over = threading.Event()
        latencies_s: list[float] = []

        def watch() -> None:
            with httpx.Client(trust_env=False, timeout=PATIENCE_S) as health:
                while not is_over.is_set():
                    start_s = time.monotonic()
                    assert health.get(f"{cluster.url}/narrow/health").status_code == 200
                    latencies_s.append(time.monotonic() - start_s)

        watching = asyncio.create_task(asyncio.to_thread(watch))
        replies = await asyncio.gather(*(ask(client, model=LARGE, stream=i % 2 == 0) for i in range(200)))
        is_over.set()
        await watching
        statuses = Counter(reply.status_code for reply in replies)
        assert statuses.keys() <= {200, 429, 503}
        assert statuses[200] >= 16
        for reply in replies:
            if reply.status_code == 200:
                assert answer_of(reply)[0] == ANSWER
            else:
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
                assert int(reply.headers["retry-after"]) >= 1
        p95_s = sorted(latencies_s)[int(0.95 * len(latencies_s))]
        print(f"overload: {dict(statuses)}, health p95 {p95_s:.3f} s of {len(latencies_s)}")
        assert p95_s < 0.5
        assert answer_of(await ask(client, model=LARGE))[0] == ANSWER


async def test_upstream_connections_end_when_their_clients_leave(cluster: Cluster) -> None:
    """The clients stream or not, ask a model or a plan, and leave while the provider works."""
    upstream, num_direct, num_routed = cluster.upstream, 50, 10
    steps = [{"id": 1, "text": "begin", "depends_on": []}, {"id": 2, "text": "end #1", "depends_on": [1]}]
    routed = {"r2": {"plan": {"subtasks": steps}, "models": {"1": "remote", "2": "remote"}}}

    def script(request: dict[str, Any]) -> Script:
        if request.get("stream"):
            return Script(sse(chunk("wait")), headers={"content-type": "text/event-stream"}, is_held=True)
        return Script(has_head=False, is_held=True)

    upstream.script = script
    async with cluster.client() as client:
        clients = [
            asyncio.create_task(ask(client, model="remote", stream=i % 2 == 0)) for i in range(num_direct)
        ]
        clients += [asyncio.create_task(ask(client, stream=i % 2 == 0, **routed)) for i in range(num_routed)]
        await until(lambda: _open(upstream, num_direct + num_routed))
        for task in clients:
            task.cancel()
        await asyncio.wait(clients)
        took_s = await until(lambda: _open(upstream, 0))
        print(f"clients gone: upstream closed after {took_s:.2f} s")
        assert took_s < 2.0
        await until(lambda: _none_running(client))
        await until(lambda: answers_itself(client, LARGE))
        assert len(upstream.requests) == num_direct + num_routed, (
            "no model was asked again and no second step was begun"
        )
        assert upstream.num_open == 0


async def _open(upstream: Upstream, count: int) -> bool:
    return upstream.num_open == count


async def _none_running(client: httpx.AsyncClient) -> bool:
    return await running(client) == 0


async def test_killed_controller_disturbs_no_client_and_the_new_one_replaces_dead_replicas(
    cluster: Cluster,
) -> None:
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        queries = [asyncio.create_task(ask(client, stream=i % 2 == 0)) for i in range(10)]
        await until(lambda: _at_least(client, 10))
        (killed,) = actors("SERVE_CONTROLLER_ACTOR")
        kill("SERVE_CONTROLLER_ACTOR")
        queries += [asyncio.create_task(ask(client)) for _ in range(10)]
        assert {answer_of(response)[0] for response in await asyncio.gather(*queries)} == {ANSWER}

        async def is_back() -> bool:
            return any(actor["Pid"] != killed["Pid"] for actor in actors("SERVE_CONTROLLER_ACTOR"))

        await until(is_back)
        kill(f"m-{SMALL}#Model")
        await until(lambda: answers_itself(client, SMALL))


async def test_killed_decomposer_and_allocator_fail_no_query(cluster: Cluster) -> None:
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        queries = [asyncio.create_task(ask(client)) for _ in range(10)]
        kill("r2#Decomposer")
        kill("r2#Allocator")
        for response in await asyncio.gather(*queries):
            text, trace = answer_of(response)
            assert text == ANSWER
            assert trace.cost_usd == sum((call.cost_usd for call in trace.calls), Decimal(0))


async def test_killed_router_replica_cuts_its_requests_and_is_replaced(cluster: Cluster) -> None:
    """Serve retries none of the requests. No client may take a cut reply for a whole answer."""
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        queries = [asyncio.create_task(ask(client, stream=i % 2 == 0)) for i in range(10)]
        await until(lambda: _at_least(client, 10))
        kill("r2#Router")
        for outcome in await asyncio.gather(*queries, return_exceptions=True):
            if isinstance(outcome, httpx.Response):
                assert outcome.status_code >= 500 and error_of(outcome)["type"] == "api_error", outcome
            else:
                assert isinstance(outcome, httpx.TransportError), outcome
        await until(lambda: _answers(client))


async def test_killed_proxy_cuts_its_connections_and_is_replaced(cluster: Cluster) -> None:
    """A client sees a broken connection, as documented, never a whole-looking answer, and may ask again."""
    async with cluster.client() as client:
        await until(lambda: answers_itself(client, SMALL))
        queries = [asyncio.create_task(ask(client, stream=i % 2 == 0)) for i in range(10)]
        await until(lambda: _at_least(client, 10))
        kill_haproxy()
        for outcome in await asyncio.gather(*queries, return_exceptions=True):
            assert isinstance(outcome, httpx.TransportError), outcome
        await until(lambda: _answers(client))


async def _answers(client: httpx.AsyncClient) -> bool:
    return (await ask(client)).status_code == 200
