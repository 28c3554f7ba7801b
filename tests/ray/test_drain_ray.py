"""The `preStop` hook of the manifest on a Ray node, with two nodes on one machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.ops.deploy_files.pods import DRAIN
from r2_serve.ops.local.cluster import LOOPBACK, free_port, run_apps
from r2_serve.serve_config import load
from tests.support.deployed_cluster import until
from tests.support.scripted_pool import LARGE, SMALL, scripted_config

pytestmark = pytest.mark.ray


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A cluster of a head without CPUs and two nodes with room for one replica of `large` each."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    raw = scripted_config(delay_s={LARGE: 15.0})
    (large,) = (app for app in raw["applications"] if app["name"] == f"m-{LARGE}")
    large["deployments"][0] |= {"ray_actor_options": {"num_cpus": 1}, "graceful_shutdown_timeout_s": 60}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    port = free_port()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(
            http_options={"host": LOOPBACK, "port": port},
            proxy_location="HeadOnly",
            logging_config={"log_level": "WARNING"},
        )
        run_apps(load(tmp_path / "c.yaml"), limit_s=120, say=print)
        yield f"http://{LOOPBACK}:{port}/v1/chat/completions"
    finally:
        ray.shutdown()
        cluster.shutdown()


def replica_of_large() -> dict[str, Any] | None:
    """The node of the replica that takes requests."""
    from ray._private.state import actors

    alive = [
        actor
        for actor in actors().values()
        if actor["State"] == "ALIVE" and f"m-{LARGE}#Model" in str(actor.get("Name"))
    ]
    return alive[0] if len(alive) == 1 else None


def test_replica_of_a_drained_node_moves_and_its_request_is_answered(url: str) -> None:
    import ray

    before = replica_of_large()
    assert before is not None
    node = before["Address"]["NodeID"]
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(
            httpx.post,
            url,
            json={"model": LARGE, "messages": [{"role": "user", "content": "hi"}]},
            timeout=60,
        )
        until(lambda: at_work.running())
        drain = shlex.split(DRAIN.format(seconds=180).split("&&")[0])
        command = [
            str(Path(sys.executable).parent / "ray"),
            *drain[1:],
            "--node-id",
            node,
            "--address",
            ray.get_runtime_context().gcs_address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        assert not at_work.done(), "the request outlasts the command"
        assert at_work.result().json()["choices"][0]["message"]["content"] == "the whole answer of four"
    until(lambda: (now := replica_of_large()) is not None and now["Address"]["NodeID"] != node)
    assert (
        httpx.post(
            url, json={"model": SMALL, "messages": [{"role": "user", "content": "hi"}]}, timeout=60
        ).status_code
        == 200
    )
