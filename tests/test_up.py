"""`r2-serve up` as a user runs it: a process that says when it is ready and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from r2_serve.local_cluster import free_port
from tests.scripted_pool import scripted_yaml

pytestmark = pytest.mark.ray


def test_up_answers_until_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    path, port = tmp_path / "pool.yaml", free_port()
    path.write_text(scripted_yaml())
    command = [sys.executable, "-m", "r2_serve.cli", "up", "--config", str(path), "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "stop:" in line:
                break
        assert any("ready" in line for line in lines), lines
        body = {"model": "r2", "messages": [{"role": "user", "content": "hi"}]}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).status_code == 200
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in children)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
    finally:
        process.kill()


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
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
