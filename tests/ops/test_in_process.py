"""`r2-serve up --in-process`: the same config and answers without Ray, in one small process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from r2_serve import EMBEDDED_CONFIG
from r2_serve.errors import ConfigError
from r2_serve.ops.local.cluster import free_port
from r2_serve.ops.local.in_process import check_in_process
from r2_serve.serve_config import load_without_ray
from tests.serve_config.test_serve_config import REFERENCE
from tests.support.scripted_pool import LARGE, scripted_config, scripted_yaml

MOST_START_S, MOST_BYTES, MOST_AT_REST = 3.0, 250e6, 0.01
"""Bounds of CPU seconds until it is ready, of memory, and of the share of a core that it uses at rest."""
REST_S = 4.0
SUM = "Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?"


@contextmanager
def up(path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The process, and its lines until it is ready. It ends with the context."""
    command = [sys.executable, "-m", "r2_serve.cli", "up", "--in-process", "--config", str(path), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("stop:"):
                break
        yield process, lines
    finally:
        process.kill()
        process.wait()


def url_of(lines: list[str]) -> str:
    (line,) = (line for line in lines if line.startswith("ready"))
    return line.split()[1]


def ask(url: str, text: str) -> httpx.Response:
    body = {"model": "r2", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=60)


def test_embedded_pool_starts_fast_in_little_memory_and_rests_without_ray() -> None:
    """The time is counted in CPU seconds, which other load on the machine does not change much."""
    start_s = time.monotonic()
    with up(EMBEDDED_CONFIG, "--port", "0") as (running, lines):
        ready_s, process = time.monotonic() - start_s, psutil.Process(running.pid)
        start_cpu_s = cpu_s(process)
        answer = ask(url_of(lines), SUM)
        memory, before_s = process.memory_full_info().pss, cpu_s(process)
        time.sleep(REST_S)
        at_rest = (cpu_s(process) - before_s) / REST_S
        print(
            f"ready after {ready_s:.1f} s ({start_cpu_s:.1f} s of CPU), {memory / 1e6:.0f} MB (PSS), "
            f"{at_rest:.2%} of a core at rest"
        )
        assert answer.json()["choices"][0]["message"]["content"] == "39"
        assert httpx.get(url_of(lines).replace("/v1", "/health/ready")).status_code == 200
        assert "r2_cost_usd_total" in httpx.get(url_of(lines).replace("/v1", "/metrics")).text
        assert any("no autoscaling, no replicas" in line for line in lines)
        assert start_cpu_s < MOST_START_S and memory < MOST_BYTES and at_rest < MOST_AT_REST
        assert process.children() == []
        assert not any("_raylet" in library.path for library in process.memory_maps())


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def test_sigterm_lets_requests_at_work_finish_and_refuses_new_connections(tmp_path: Path) -> None:
    """The port comes from the file."""
    path, port = tmp_path / "pool.yaml", free_port()
    config = scripted_config(delay_s={LARGE: 2.0}) | {"http_options": {"host": "127.0.0.1", "port": port}}
    path.write_text(yaml.safe_dump(config))
    with up(path) as (process, lines), ThreadPoolExecutor(1) as pool:
        url = url_of(lines)
        assert url == f"http://127.0.0.1:{port}/v1"
        at_work = pool.submit(ask, url, "hi")
        while "r2_requests_running 1.0" not in httpx.get(url.replace("/v1", "/metrics")).text:
            assert not at_work.done()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            while not at_work.done():
                httpx.get(url.replace("/v1", "/health"))
        assert at_work.result().json()["choices"][0]["message"]["content"] == "the whole answer of four"
        assert process.wait(timeout=30) == 0


def test_applications_that_need_a_cluster_are_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        check_in_process(load_without_ray(REFERENCE))
    assert "m-qwen2.5-0.5b (vllm), m-qwen2.5-1.5b (vllm)" in caught.value.message
    assert "Leave --in-process out" in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port: 8000", "port: many", "http_options.port: got 'many', expected a port"),
        ("deployments:\n  - name: Router", "deployments: 5\n  other:\n  - name: Router", "no `user_config`"),
        ("usd_per_mtok_in", "usd_per_mtok", "did you mean 'usd_per_mtok_in'"),
    ],
)
def test_config_without_rays_schema_is_still_read_strictly(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(scripted_yaml().replace(old, new))
    with pytest.raises(ConfigError, match="error") as caught:
        load_without_ray(path)
    assert message in caught.value.message


def test_public_address_without_client_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(scripted_yaml())
    command = [sys.executable, "-m", "r2_serve.cli", "up", "--in-process", "--config", str(path)]
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "anyone could spend your money" in done.stderr
