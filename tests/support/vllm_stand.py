"""A local Ray cluster whose one model runs on vLLM: a tiny one on CPUs, a real one where a GPU is at hand."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import ServeConfig, load
from tests.support.deployed_cluster import until
from tests.support.serve_apps import model_app, router_app, served_card

HAS_GPU = Path("/dev/nvidiactl").exists()
GPU_MODEL = os.environ.get("R2_GPU_SMOKE_MODEL", "Qwen/Qwen2.5-0.5B-Instruct")
"""The model on a GPU: a hub name or a directory."""
GPU_SHARE = 0.5
"""Each engine takes half of a card, so that two are on it."""
MODEL_OPTIONS = {"num_cpus": 0, "num_gpus": GPU_SHARE if HAS_GPU else 0}
APP = "m-local"
START_S = 600.0
"""The limit for a start of vLLM, on a busy machine."""


@dataclass(frozen=True)
class VllmStand:
    """A running cluster, with the pool model `local` and the virtual model `r2`."""

    url: str
    config: ServeConfig
    checkpoint: str
    path: Path
    """The file of `config`."""

    def post(self, model: str = "local", text: str = "hi", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        return httpx.post(f"{self.url}/chat/completions", json=body, timeout=START_S, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url.removesuffix("/v1") + path, timeout=30, trust_env=False)

    def node_metrics(self) -> str:
        """What Prometheus would read of the one node."""
        import ray

        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        return httpx.get(url, timeout=30, trust_env=False).text


@contextmanager
def vllm_stand(folder: Path, **engine_kwargs: object) -> Iterator[VllmStand]:
    checkpoint = GPU_MODEL if HAS_GPU else _tiny(folder / "model")
    path, port = folder / "serve_config.yaml", free_port()
    path.write_text(yaml.safe_dump(_config(checkpoint, engine_kwargs), sort_keys=False))
    config = load(path)
    with local_cluster(config, port=port, num_cpus=4, start_timeout_s=START_S) as url:
        yield VllmStand(url, config, checkpoint, path)


def engine_of(checkpoint: str, **engine_kwargs: object) -> dict[str, Any]:
    """The `engine` section of a model of the stand."""
    limits = {"max_model_len": 2048, "gpu_memory_utilization": 0.9 * GPU_SHARE} if HAS_GPU else {}
    kwargs = {"enable_lora": True, "max_lora_rank": 8, **limits, **engine_kwargs}
    return {"kind": "vllm", "model": checkpoint, "engine_kwargs": kwargs}


def _config(checkpoint: str, engine_kwargs: dict[str, object]) -> dict[str, Any]:
    stages = {"decomposer": {"model": "local"}, "allocator": {"model": "local"}}
    routing = {
        "virtual_models": {"r2": {"pool": ["local"], **stages, "plan": "never"}},
        "limits": {"deadline_s": START_S},
    }
    card = served_card("local", context_tokens=2048, timeout_s=START_S)
    return {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            model_app("local", engine_of(checkpoint, **engine_kwargs), ray_actor_options=MODEL_OPTIONS),
            router_app({"models": [card]}, routing, is_free=True),
        ],
    }


def _tiny(folder: Path) -> str:
    from tests.support.tiny_checkpoint import tool_checkpoint

    return tool_checkpoint(folder)


@dataclass(frozen=True)
class Processes:
    """One replica of the model: its own process, and those that vLLM started in its process group."""

    replica: psutil.Process
    engine_core: psutil.Process

    @classmethod
    def now(cls) -> Processes:
        """Raises: AssertionError if no replica is there within the limit."""
        found: list[Processes] = []

        def is_there() -> bool:
            replicas = [p for p in psutil.process_iter() if f"ServeReplica:{APP}:" in _name(p)]
            for replica in replicas:
                cores = [child for child in replica.children() if _is_engine_core(child)]
                found.extend(cls(replica, core) for core in cores)
            return bool(found)

        until(is_there)
        return found[0]

    def kill(self, process: psutil.Process) -> float:
        """Kills one of them; seconds until none is left, so that all of their memory is free.

        Raises: AssertionError if one is left after the limit.
        """
        group, start_s = os.getpgid(self.replica.pid), time.monotonic()
        assert group == self.replica.pid, "Ray gives each worker a process group of its own"
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not members(group))
        return time.monotonic() - start_s


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    return [p.pid for p in psutil.process_iter() if _group(p) == group and _state(p) != "zombie"]


def gpu_memory_used_mib() -> int:
    """What the first GPU's processes hold, by the driver."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def _is_engine_core(process: psutil.Process) -> bool:
    """vLLM's own title of the process is missing at times."""
    return any(mark in _name(process) for mark in ("EngineCore", "multiprocessing.spawn"))


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _state(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.Error:
        return "zombie"


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None
