"""A Ray head of our own with its dashboard, and config files deployed on it by `serve deploy`, as on a
cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from r2_serve.ops.local.cluster import LOOPBACK, free_port

DEPLOY_TIMEOUT_S = 180


class DeployedCluster:
    """The addresses for `serve deploy` and for the HTTP clients of a test."""

    def __init__(self, folder: Path) -> None:
        self.dashboard_port, self.http_port = free_port(), free_port()
        self.path = folder / "serve_config.yaml"

    @property
    def dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def headers(self) -> dict[str, str]:
        """The token that the dashboard asks for."""
        return {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}

    def deploy(self, config: Mapping[str, Any], host: str = LOOPBACK) -> None:
        config = {**config, "http_options": {"host": host, "port": self.http_port}}
        self.path.write_text("# written by a test\n" + yaml.safe_dump(config, sort_keys=False))
        serve = Path(sys.executable).parent / "serve"
        command = [str(serve), "deploy", str(self.path), "-a", self.dashboard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{LOOPBACK}:{self.http_port}{path}", timeout=10)

    def ask(self, model: str, text: str = "hi") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "r2": {"trace": True}}
        return httpx.post(f"http://{LOOPBACK}:{self.http_port}/v1/chat/completions", json=body, timeout=60)


@contextmanager
def running_cluster(folder: Path) -> Iterator[DeployedCluster]:
    import ray

    cluster = DeployedCluster(folder)
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


def replica_pids() -> dict[str, int]:
    """The pid of every living replica, by its actor's name."""
    from ray._private.state import actors

    alive = (actor for actor in actors().values() if actor["State"] == "ALIVE" and "#" in actor["Name"])
    return {actor["Name"]: actor["Pid"] for actor in alive}


def until(is_so: Callable[[], bool]) -> float:
    """Asks twice a second until `holds` is true; the seconds it took.

    Raises: AssertionError after the limit.
    """
    pause, start_s = threading.Event(), time.monotonic()
    for _ in range(2 * DEPLOY_TIMEOUT_S):
        try:
            if is_so():
                return time.monotonic() - start_s
        except (httpx.HTTPError, KeyError, ValueError):
            pass  # not up yet, or between two versions
        pause.wait(0.5)
    raise AssertionError(f"not so within {DEPLOY_TIMEOUT_S} s")
