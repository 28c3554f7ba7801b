"""The reference application on several Ray nodes of this machine, some of which are killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest

from r2_serve.config import SpeedConfig
from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.ops.local.nodes import add_node, kill_node, local_nodes
from r2_serve.serve_config import ServeConfig, load
from r2_serve.serve_config.checks_scaling import PLAN_AHEAD
from r2_serve.serve_config.rehearsal import rehearsed
from tests import ROOT

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray
Found = TypeVar("Found")

REFERENCE = ROOT / "serve_config.yaml"
SMALL, LARGE = "qwen2.5-0.5b", "qwen2.5-3b"
SPEED = SpeedConfig(start_s=1.0, prefill_tokens_per_s=20_000, decode_tokens_per_s=40, max_batch_size=8)
PLAN = {
    "subtasks": [
        *({"id": i, "text": "Write 60 words.", "depends_on": []} for i in (1, 2, 3)),
        {"id": 4, "text": "Write 20 words on #1, #2 and #3.", "depends_on": [1, 2, 3]},
    ]
}
TASK = "Synthetic task.\n" + json.dumps(
    {"plan": PLAN, "allocation": {"models": [SMALL, SMALL, SMALL, LARGE]}}
)
TO_ZERO = {
    "min_replicas": 0,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 2,
    "policy": {"policy_function": PLAN_AHEAD, "policy_kwargs": {"cold_start_s": 5, "drain_s": 2, "trend": 0}},
}


@dataclass
class Nodes:
    cluster: Cluster
    base_url: str

    async def ask(self, http: httpx.AsyncClient) -> dict[str, Any]:
        body = {"model": "r2", "messages": [{"role": "user", "content": TASK}], "r2": {"trace": True}}
        response = await http.post(f"{self.base_url}/chat/completions", json=body, timeout=110)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    reference = load(REFERENCE)
    config = scaled_to_zero(
        always_planning(rehearsed(reference, {model.name: SPEED for model in reference.router.models})),
        f"m-{SMALL}",
        f"m-{LARGE}",
    )
    with (
        local_nodes(2, gpus_each=4) as cluster,
        local_cluster(config, port=free_port(), address=cluster.address) as url,
    ):
        yield Nodes(cluster, url)


def always_planning(config: ServeConfig) -> ServeConfig:
    """The config whose virtual models split every query, also a short one."""
    virtual = config.routing.virtual_models
    planned = {name: model.model_copy(update={"plan": "always"}) for name, model in virtual.items()}
    return replace(config, routing=config.routing.model_copy(update={"virtual_models": planned}))


def scaled_to_zero(config: ServeConfig, *apps: str) -> ServeConfig:
    def changed(app: dict[str, Any]) -> dict[str, Any]:
        if app["name"] not in apps:
            return app
        return {
            **app,
            "deployments": [
                {**deployment, "autoscaling_config": TO_ZERO} for deployment in app["deployments"]
            ],
        }

    return replace(
        config, raw={**config.raw, "applications": [changed(app) for app in config.raw["applications"]]}
    )


def replicas(app: str, *states: str) -> int:
    """Replicas in these states; running or starting ones if none is given."""
    from ray import serve

    counts = serve.status().applications[app].deployments["Model"].replica_states
    return sum(counts.get(state, 0) for state in states or ("RUNNING", "STARTING"))


async def until(found: Callable[[], Found], is_it: Callable[[Found], bool] = bool) -> Found:
    """Looks four times a second until something is found. Raises: AssertionError after two minutes."""
    for _ in range(480):
        seen = await asyncio.to_thread(found)
        if is_it(seen):
            return seen
        await asyncio.sleep(0.25)
    raise AssertionError(f"still {seen}")


async def until_replicas(app: str, count: int) -> None:
    """True if there are at least so many replicas; for 0, if there is none."""
    await until(lambda: replicas(app), lambda found: found >= count if count else found == 0)


def nodes_of_replicas(nodes: Nodes, app: str) -> list[str]:
    """The living nodes with a replica at work."""
    from ray._private.state import actors

    alive = [
        actor for actor in actors().values() if actor["State"] == "ALIVE" and f"{app}#Model" in actor["Name"]
    ]
    there = {node.node_id for node in nodes.cluster.worker_nodes}
    return [node for actor in alive if (node := actor["Address"]["NodeID"]) in there]


async def test_plan_starts_a_model_before_its_first_call_and_stops_it_afterwards(nodes: Nodes) -> None:
    async with httpx.AsyncClient() as http:
        assert (replicas(f"m-{SMALL}"), replicas(f"m-{LARGE}")) == (0, 0)
        first = await nodes.ask(http)
        results = first["r2"]["trace"]["results"]
        assert [result["model"] for result in results] == [SMALL, SMALL, SMALL, LARGE]
        await until_replicas(f"m-{LARGE}", 0)
        await until_replicas(f"m-{SMALL}", 0)
        asked = [asyncio.create_task(nodes.ask(http)) for _ in range(3)]
        await until_replicas(f"m-{LARGE}", 1)
        assert replicas(f"m-{SMALL}", "RUNNING") == 0, (
            "so no call has reached the first wave's model yet, let alone the second's"
        )
        await asyncio.gather(*asked)


async def test_killed_node_under_load_loses_no_query(nodes: Nodes) -> None:
    """Two nodes with calls under way are killed, one after the other; between them another node joins."""
    async with httpx.AsyncClient() as http:
        await nodes.ask(http)
        asked = []
        for number in range(30):
            asked.append(asyncio.create_task(nodes.ask(http)))
            await asyncio.sleep(0.2)  # the load: five queries a second
            if number in (8, 22):
                node, *_ = await until(lambda: nodes_of_replicas(nodes, f"m-{SMALL}"))
                await asyncio.to_thread(kill_node, nodes.cluster, node)
            if number == 16:
                add_node(nodes.cluster, gpus=4)
        replies = await asyncio.gather(*asked)
    assert len(replies) == 30
    calls = [call for reply in replies for call in reply["r2"]["trace"]["calls"]]
    assert any(call["outcome"] != "ok" for call in calls), "the nodes were at work when they were killed"
    for reply in replies:
        answered = [
            call["subtask"]
            for call in reply["r2"]["trace"]["calls"]
            if call["stage"] == "execute" and call["outcome"] == "ok"
        ]
        steps = [step["id"] for step in reply["r2"]["trace"]["plan"]["subtasks"]]
        assert sorted(answered) == steps, "each is answered once, also where the planner was away too long"
