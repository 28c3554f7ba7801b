"""A LoRA of a real chat model goes live and back under load, on a cluster that was deployed by file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from r2_serve.adapters import write_adapter
from tests.support.deployed_cluster import DeployedCluster, replica_pids, running_cluster, until
from tests.support.scripted_pool import SMALL, scripted_config
from tests.support.serve_apps import FREE, model_app, served_card
from tests.support.small_adapters import manifest

pytestmark = [pytest.mark.llm, pytest.mark.slow]

REAL, QUERY = "smollm2", "Add 2 and 3."
NUM_CLIENTS, MOST_REQUESTS = 2, 400


def config(path: str) -> dict[str, Any]:
    """The scripted pool, whose queries the real model splits."""
    config = scripted_config(limits={"deadline_s": 600, "max_subtasks": 2})
    app = model_app(REAL, {"kind": "transformers", "path": path}, **FREE)
    config["applications"].insert(0, app)
    router = config["applications"][-1]
    router["args"]["models"].append(served_card(REAL, timeout_s=600, context_tokens=2048))
    stage = {"model": REAL, "num_samples": 1, "max_tokens": 120, "timeout_s": 600, "retries_cut": False}
    virtual_models = router["deployments"][0]["user_config"]["virtual_models"]
    virtual_models["real"] = {
        "pool": [SMALL], "decomposer": stage, "allocator": {"model": "picker"}, "plan": "always",
    }  # fmt: skip
    return config


@pytest.fixture
def cluster(smollm2: str, tmp_path: Path) -> Iterator[DeployedCluster]:
    with running_cluster(tmp_path) as cluster:
        cluster.deploy(config(smollm2))
        until(lambda: cluster.get("/health/ready").status_code == 200)
        yield cluster


def command(cluster: DeployedCluster, *words: str) -> None:
    options = ["--config", str(cluster.path), "--dashboard", cluster.dashboard]
    line = [sys.executable, "-m", "r2_serve.cli", *words, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr


def ask(cluster: DeployedCluster) -> httpx.Response:
    body = {"model": "real", "messages": [{"role": "user", "content": QUERY}], "r2": {"trace": True}}
    url = f"http://127.0.0.1:{cluster.http_port}/v1/chat/completions"
    return httpx.post(url, json=body, timeout=600)


def plan_of(reply: httpx.Response) -> str:
    """What the greedy decomposer wrote, which tells its weights apart."""
    trace = reply.json()["r2"]["trace"]
    return trace["plan_fallback"] or str([step["text"] for step in trace["plan"]["subtasks"]])


def test_lora_is_published_and_rolled_back_under_load(
    cluster: DeployedCluster, lora: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(lora, tmp_path / "adapters", manifest("dec-0001", base=REAL))
    statuses: list[int] = []
    stop, pids = threading.Event(), replica_pids()

    def client() -> None:
        for _ in range(MOST_REQUESTS):
            if stop.is_set():
                return
            statuses.append(ask(cluster).status_code)

    base = plan_of(ask(cluster))
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(NUM_CLIENTS)]
        try:
            command(cluster, "publish", str(adapter))
            published = plan_of(ask(cluster))
            command(cluster, "rollback", "--module", "decomposer", "--to", "base")
            rolled_back = plan_of(ask(cluster))
        finally:
            stop.set()
    for done in clients:
        done.result()
    assert published != base == rolled_back
    assert set(statuses) == {200} and len(statuses) > NUM_CLIENTS
    assert replica_pids().items() >= pids.items(), "no replica was restarted"
