"""A config file through `serve deploy`, as on a cluster: builders are imported by path, and routing changes live."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from r2_serve.local_cluster import LOOPBACK, free_port
from tests.scripted_pool import LARGE, SMALL, scripted_config

pytestmark = pytest.mark.ray

DEPLOY_TIMEOUT_S = 180


class Cluster:
    """A Ray head of our own with its dashboard, which is what `serve deploy` talks to."""

    def __init__(self, tmp_path: Path) -> None:
        self.dashboard_port, self.http_port = free_port(), free_port()
        self.path = tmp_path / "serve_config.yaml"

    def deploy(self, **changes: object) -> None:
        import yaml

        config = {**scripted_config(**changes), "http_options": {"host": LOOPBACK, "port": self.http_port}}
        self.path.write_text(yaml.safe_dump(config))
        serve = Path(sys.executable).parent / "serve"
        command = [str(serve), "deploy", str(self.path), "-a", f"http://{LOOPBACK}:{self.dashboard_port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{LOOPBACK}:{self.http_port}{path}", timeout=10)

    def ask(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "r2": {"trace": True}}
        return httpx.post(f"http://{LOOPBACK}:{self.http_port}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import ray

    cluster = Cluster(tmp_path_factory.mktemp("deploy"))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host=LOOPBACK,
        dashboard_port=cluster.dashboard_port,
        log_to_driver=False,
        _node_ip_address=LOOPBACK,
    )
    try:
        yield cluster
    finally:
        ray.shutdown()


def test_a_deployed_file_answers_and_its_routing_changes_without_a_restart(cluster: Cluster) -> None:
    cluster.deploy()
    _until(lambda: cluster.get("/health/ready").status_code == 200)
    first = cluster.ask("r2").json()
    assert [result["model"] for result in first["r2"]["trace"]["results"]] == [SMALL, SMALL, LARGE]
    pids = _replica_pids()

    cluster.deploy(virtual={"policy": f"all:{SMALL}"})
    _until(lambda: cluster.ask("r2").json()["r2"]["policy"] == f"all:{SMALL}")
    changed = cluster.ask("r2").json()
    assert {result["model"] for result in changed["r2"]["trace"]["results"]} == {SMALL}
    assert _replica_pids() == pids


def test_the_dashboard_asks_for_the_token(cluster: Cluster) -> None:
    url = f"http://{LOOPBACK}:{cluster.dashboard_port}/api/jobs/"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert httpx.get(url, timeout=10).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 200


def _replica_pids() -> dict[str, int]:
    from ray._private.state import actors

    alive = (actor for actor in actors().values() if actor["State"] == "ALIVE" and "#" in actor["Name"])
    return {actor["Name"]: actor["Pid"] for actor in alive}


def _until(is_so: Callable[[], bool]) -> None:
    """Asks twice a second until it holds. Raises: AssertionError after `DEPLOY_TIMEOUT_S`."""
    pause = threading.Event()
    for _ in range(2 * DEPLOY_TIMEOUT_S):
        try:
            if is_so():
                return
        except (httpx.HTTPError, KeyError, ValueError):
            pass  # not up yet, or between two versions
        pause.wait(0.5)
    raise AssertionError(f"not so within {DEPLOY_TIMEOUT_S} s")
