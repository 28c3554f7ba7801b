"""Real vLLM in replicas of Ray Serve: a plan, an adapter, kills, a start out of memory, and an orderly end.

On CPUs the model is tiny and random. `make gpu-smoke` runs the same tests with a real model on a GPU.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch")
if find_spec("vllm") is None or find_spec("peft") is None:
    pytest.skip("needs vllm and peft", allow_module_level=True)

from r2_serve.app import bind_model
from r2_serve.cluster.handles import ServedEngine
from r2_serve.config import ModelServerConfig
from r2_serve.errors import EngineRefused
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import task_of
from r2_serve.ops.deploy_files.dashboard import dashboard
from r2_serve.ops.local.cluster import finish_requests
from r2_serve.types import EngineCall, Message, Sampling, Trace
from r2_train.config import PoolConfig
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.served_pool import Checkpoint, open_pool
from r2_train.stages.measure import RouterScore, measure
from r2_train.stages.rewards import Reference
from tests.support.deployed_cluster import until
from tests.support.scraped import total
from tests.support.tiny_checkpoint import random_adapter
from tests.support.vllm_stand import (
    APP,
    HAS_GPU,
    MODEL_OPTIONS,
    Processes,
    VllmStand,
    engine_of,
    gpu_memory_used_mib,
    members,
    vllm_stand,
)

pytestmark = [pytest.mark.gpu if HAS_GPU else pytest.mark.engine, pytest.mark.ray]
TASKS = [task_of("words", {"id": f"w{n}", "query": f"add {n} and 2", "gold": str(n + 2)}) for n in (1, 2)]
TOO_MUCH = 10**13
"""Bytes of KV cache that no machine has."""


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStand]:
    before = gpu_memory_used_mib() if HAS_GPU else 0
    start_s = time.monotonic()
    with vllm_stand(tmp_path_factory.mktemp("stand")) as stand:
        print(f"\nstart of the cluster and vLLM: {time.monotonic() - start_s:.1f} s")
        yield stand
        group = Processes.now().replica.pid
    until(lambda: not members(group))
    if HAS_GPU:
        until(lambda: gpu_memory_used_mib() <= before + 100)


def test_plan_runs_on_vllm_and_its_calls_are_paid(stand: VllmStand) -> None:
    steps = [
        {"id": 1, "text": "left", "depends_on": []},
        {"id": 2, "text": "right", "depends_on": []},
        {"id": 3, "text": "join #1 and #2", "depends_on": [1, 2]},
    ]
    response = stand.post("r2", r2={"plan": {"subtasks": steps}, "trace": True})
    assert response.status_code == 200, response.text
    trace = Trace.model_validate(response.json()["r2"]["trace"])
    steps_run = [call for call in trace.calls if call.stage == "execute"]
    assert sorted(call.subtask or 0 for call in steps_run) == [1, 2, 3]
    assert all(call.outcome == "ok" and call.usage.completion_tokens for call in steps_run)


def test_metrics_of_vllm_reach_prometheus_by_rays_nodes(stand: VllmStand) -> None:
    assert stand.post(text="the same prompt").status_code == 200
    exprs = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    named = {name for expr in exprs for name in re.findall(r"\bray_vllm_\w+", expr)}
    assert len(named) >= 7
    never_yet = {"ray_vllm_num_preemptions_total", "ray_vllm_prefix_cache_hits_total"}
    until(lambda: all(f"\n{name}{{" in stand.node_metrics() for name in named - never_yet))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests, because Serve keeps a handle's router on the loop of its first call."""
    with asyncio.Runner() as runner:
        yield runner


def test_adapter_that_is_loaded_live_changes_the_reply(
    stand: VllmStand, runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = random_adapter(stand.checkpoint, tmp_path_factory.mktemp("adapter"), seed=1)
    plain, adapted = runner.run(_replies(path))
    assert plain and plain != adapted


async def _replies(adapter: str) -> list[str]:
    from ray import serve

    handle = serve.get_deployment_handle("Model", APP)
    await handle.broadcast("load_adapter", "late", adapter).results_async(timeout_s=120)
    engine, prompt = ServedEngine(APP), (Message(role="user", content="one plus two"),)
    calls = [EngineCall(messages=prompt, sampling=Sampling(max_tokens=12), adapter=a) for a in (None, "late")]
    return [(await engine.generate(call)).text for call in calls]


def test_checkpoint_in_training_is_measured_on_the_served_base_and_leaves_it_as_it_was(
    stand: VllmStand, runner: asyncio.Runner, tmp_path: Path
) -> None:
    """It is loaded on the replica, measured through the router, and dropped; no engine starts for it."""
    checkpoint = Path(random_adapter(stand.checkpoint, tmp_path / "lora", seed=2))
    running = Processes.now()
    score, before, meanwhile, afterwards = runner.run(_measured(stand, checkpoint, tmp_path))
    assert (score.num_tasks, score.num_failed) == (len(TASKS), 0)
    assert score.calls_per_query["local"] >= 2, "plans and steps ran on the served model"
    assert before == afterwards
    assert meanwhile[0] != before[0] and "'decomposer-" in meanwhile[1]
    assert Processes.now() == running


async def _measured(
    stand: VllmStand, checkpoint: Path, folder: Path
) -> tuple[RouterScore, list[str], list[str], list[str]]:
    """The score; and what the model answers and has loaded before, with the adapter, and afterwards."""
    prompt, sampling = (Message(role="user", content="one plus two"),), Sampling(max_tokens=12)
    served = ServedEngine(APP)

    async def has_loaded() -> str:
        with pytest.raises(EngineRefused) as refused:
            await served.generate(EngineCall(messages=prompt, sampling=sampling, adapter="unknown"))
        return refused.value.message

    async def plain() -> list[str]:
        reply = await served.generate(EngineCall(messages=prompt, sampling=sampling))
        return [reply.text, await has_loaded()]

    config = PoolConfig(serve_config=_brief(stand.path, folder), virtual_model="r2", reach="serve")
    before = await plain()
    with CallCache(folder / "calls.sqlite") as cache:
        async with aclosing(open_pool(config, cache, {"decomposer": Checkpoint(path=checkpoint)})) as pool:
            reference = Reference(cost_usd=1, critical_path_tokens=1)
            score = await measure(pool, TASKS, Grader(), reference)
            adapted = await pool.ask("local", prompt, sampling, pool.virtual.decomposer.adapter)
            meanwhile = [adapted.text, await has_loaded()]
    return score, before, meanwhile, await plain()


def _brief(path: Path, folder: Path) -> Path:
    """The config with short replies, as a random model does not end its own."""
    raw = yaml.safe_load(path.read_text())
    (card,) = raw["applications"][-1]["args"]["models"]
    card["max_tokens"] = 32
    (virtual,) = raw["applications"][-1]["deployments"][0]["user_config"]["virtual_models"].values()
    for module in ("decomposer", "allocator"):
        virtual[module] |= {"max_tokens": 64, "retries_cut": False}
    brief = folder / "brief.yaml"
    brief.write_text(yaml.safe_dump(raw))
    return brief


def test_replica_ends_itself_when_its_engine_is_killed_and_calls_are_answered(stand: VllmStand) -> None:
    """Calls at work and new ones are answered by the replica that takes its place."""
    dying = Processes.now()
    with ThreadPoolExecutor(5) as pool:
        at_work = [pool.submit(stand.post, max_tokens=1500) for _ in range(4)]
        until(lambda: total(stand.get("/metrics").text, "r2_requests_running") >= 4)
        seconds = dying.kill(dying.engine_core)
        start_s = time.monotonic()
        assert pool.submit(stand.post).result().status_code == 200
        print(f"\nkill -9 of EngineCore: memory free after {seconds:.1f} s,", end=" ")
        print(f"the next call answered after {time.monotonic() - start_s:.1f} s")
        assert [call.result().status_code for call in at_work] == [200] * 4
    assert Processes.now().replica.pid != dying.replica.pid


def test_engine_ends_with_its_replica_when_that_is_killed(stand: VllmStand) -> None:
    dying = Processes.now()
    seconds = dying.kill(dying.replica)
    start_s = time.monotonic()
    assert stand.post().status_code == 200
    print(f"\nkill -9 of the replica: memory free after {seconds:.1f} s,", end=" ")
    print(f"the next call answered after {time.monotonic() - start_s:.1f} s")
    assert Processes.now().engine_core.pid != dying.engine_core.pid


def test_start_out_of_memory_says_so_and_leaves_the_others_serving(stand: VllmStand) -> None:
    from ray import serve

    config = ModelServerConfig.model_validate(
        {"engine": engine_of(stand.checkpoint, kv_cache_memory_bytes=TOO_MUCH)}
    )
    options = {"Model": {"ray_actor_options": MODEL_OPTIONS, "max_constructor_retry_count": 1}}
    target = serve.RunTarget(bind_model(config, options), "m-large", None)
    serve.run_many([target], wait_for_applications_running=False)

    def reason() -> str:
        return serve.status().applications["m-large"].deployments["Model"].message

    until(lambda: "does not start" in reason())
    assert "memory" in reason().lower() and "on node" in reason(), reason()
    assert stand.post().status_code == 200
    serve.delete("m-large")


def test_orderly_end_answers_calls_at_work_and_refuses_new_ones(stand: VllmStand) -> None:
    """It is the last test, as the router takes no more calls."""
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(stand.post, max_tokens=1500)
        until(lambda: total(stand.get("/metrics").text, "r2_requests_running") >= 1)
        finish_requests(stand.config)
        assert at_work.result().status_code == 200
        assert stand.post().json()["error"]["code"] == "stopping"
