"""`r2-serve up` as a user runs it: a process that says when it is ready and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from r2_serve.ops.local.cluster import free_port
from tests.ray.test_cluster_faults import answer_of
from tests.support.deployed_cluster import until
from tests.support.scraped import replicas_of, total
from tests.support.scripted_pool import LARGE, SMALL, scripted_config, scripted_yaml
from tests.support.small_adapters import adapter

pytestmark = pytest.mark.ray


NUM_AT_WORK, NUM_REFUSED = 4, 6
"""The number of queries at work at SIGTERM, and of new ones refused in a row, so by both routers."""


def test_up_answers_until_sigterm_and_finishes_running_requests(tmp_path: Path) -> None:
    """An adapter is published into it from another shell. Then both router replicas answer queries under way
    at SIGTERM and refuse new ones; no process is left."""
    path, port, dashboard = tmp_path / "pool.yaml", free_port(), free_port()
    config = scripted_config(delay_s={LARGE: 12.0}) | {"http_options": {"host": "127.0.0.1", "port": port}}
    config["applications"][-1]["deployments"][0] |= {"num_replicas": 2}
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "r2_serve.cli", "up", "--config", str(path)]
    command += ["--dashboard", str(dashboard)]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"
    } | {"HOME": str(tmp_path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "stop:" in line:
                break
        assert any(f"ready  http://127.0.0.1:{port}/v1" in line for line in lines), lines
        body = {"model": "r2", "messages": [{"role": "user", "content": "hi"}], "r2": {"trace": True}}
        url = f"http://127.0.0.1:{port}"
        until(lambda: len(routers_that_answered(url, {**body, "model": SMALL})) == 2)
        routers = routers_that_answered(url, {**body, "model": SMALL})
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in children)
        assert listens_beyond_loopback(children) == [], (
            "but for Serve's internal gRPC, which asks for the token"
        )
        published(adapter(tmp_path, "d1"), path, dashboard, environment)
        assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
        router = yaml.safe_load(path.read_text())["applications"][-1]["deployments"][0]
        assert router["user_config"]["virtual_models"]["r2"]["decomposer"]["adapter"] == "d1"
        assert routers_that_answered(url, {**body, "model": SMALL}) == routers, "none was replaced"
        with ThreadPoolExecutor(NUM_AT_WORK) as pool:
            queries = [{**body, "stream": i < NUM_AT_WORK // 2} for i in range(NUM_AT_WORK)]
            at_work = []
            for query in queries:
                at_work.append(pool.submit(httpx.post, f"{url}/v1/chat/completions", json=query, timeout=60))
                while sum((running := at_work_of(url)).values()) != len(at_work):
                    assert not any(query.done() for query in at_work)
                    time.sleep(0.1)
            assert all(num > 0 for num in running.values()) and len(running) == 2
            process.send_signal(signal.SIGTERM)
            assert any("stopping" in line for line in process.stdout)
            num_refused = 0
            while num_refused < NUM_REFUSED:
                late = httpx.post(f"{url}/v1/chat/completions", json={**body, "model": SMALL}, timeout=60)
                num_refused = num_refused + 1 if late.status_code != 200 else 0
                assert not any(query.done() for query in at_work)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
            assert {answer_of(query.result())[0] for query in at_work} == {"the whole answer of four"}
        assert process.wait(timeout=60) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
    finally:
        process.kill()


def published(directory: Path, path: Path, dashboard: int, environment: dict[str, str]) -> None:
    """`r2-serve publish` as in another shell of the same user: nothing restarts."""
    command = [sys.executable, "-m", "r2_serve.cli", "publish", str(directory), "--config", str(path)]
    command += ["--dashboard", f"http://127.0.0.1:{dashboard}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def routers_that_answered(url: str, body: dict[str, Any]) -> set[str]:
    """The router replicas, once two have answered `body`: the proxy learns of the second one later."""
    for _ in range(2):
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    page, chat = httpx.get(f"{url}/metrics", timeout=60).text, "/v1/chat/completions"
    return {
        router
        for router in replicas_of(page)
        if total(page, "r2_requests_total", replica=router, route=chat) > 0
    }


def at_work_of(url: str) -> dict[str, float]:
    """The number of requests at work in each router. HAProxy gives requests in turns, and these are two, so
    that the next one goes to the other router."""
    for _ in range(2):
        page = httpx.get(f"{url}/metrics", timeout=60).text
    return {router: total(page, "r2_requests_running", replica=router) for router in replicas_of(page)}


def listens_beyond_loopback(processes: list[psutil.Process]) -> list[str]:
    """Addresses open to the network, without the one port of each replica that Serve does not let us bind."""
    found = []
    for process in processes:
        try:
            listening = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue  # one of the short-lived that a cluster starts
        beyond = [address for address in listening if address.ip.removeprefix("::ffff:") != "127.0.0.1"]
        if len(beyond) > process.name().startswith("ray::ServeReplica"):
            found.append(f"{process.name()} at {beyond}")
    return found


def test_occupied_port_is_named_before_the_start(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "pool.yaml"
    path.write_text(scripted_yaml())
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = [sys.executable, "-m", "r2_serve.cli", "up", "--config", str(path), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr and "--port" in done.stderr


def test_config_beyond_the_machine_is_refused_with_the_deployment_and_the_numbers(tmp_path: Path) -> None:
    config = scripted_config()
    config["applications"][0]["deployments"][0] |= {"ray_actor_options": {"num_cpus": 1000}}
    done = up_once(tmp_path, config, "--port", "0")
    assert done.returncode == 1
    assert "deployment Model of application 'm-small': a replica asks for 1000 CPU" in done.stderr


def test_start_beyond_its_limit_ends_with_the_state_of_each_deployment(tmp_path: Path) -> None:
    """The other applications are shown as they become ready, though the output is no terminal."""
    config = scripted_config()
    speed = {"start_s": 600, "prefill_tokens_per_s": 1, "decode_tokens_per_s": 1}
    config["applications"][0]["args"]["engine"] = {"kind": "scripted", "speed": speed}
    done = up_once(tmp_path, config, "--port", "0", "--start-timeout", "30")
    assert done.returncode == 1
    assert "m-large is ready" in done.stdout and "r2 is ready" in done.stdout
    assert "after 30 s (--start-timeout) these applications do not run:" in done.stderr
    assert "m-small is DEPLOYING" in done.stderr and "Model is UPDATING" in done.stderr


def up_once(
    folder: Path, config: dict[str, Any], *options: str, timeout_s: float = 200
) -> subprocess.CompletedProcess[str]:
    """`r2-serve up` with `config`, until it ends by itself."""
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "r2_serve.cli", "up", "--config", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
