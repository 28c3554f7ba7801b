"""What this machine has: cores, memory, disk, GPUs, installed packages, a free port."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from r2_serve import __version__
from r2_serve.config import VllmEngineConfig
from r2_serve.errors import ConfigError
from r2_serve.serve_config import ServeConfig

_GIB = 2**30
MIN_DISK_BYTES = 5 * _GIB
"""Free space below which there is a warning: logs of Ray and the weights of a small model need it."""
MIN_SHARED_MEMORY_BYTES = _GIB
"""Ray keeps objects in shared memory and falls back on the disk, slowly; Docker gives 64 MB by default."""
MIN_DRIVER = 580
"""Oldest NVIDIA driver for CUDA 13, with which the pinned torch is built."""
PACKAGES = {
    "ray": "clusters and `r2-serve up`; `up --in-process` does without its processes",
    "torch": "engines `vllm` and `transformers`, training",
    "transformers": "engine `transformers`, training",
    "vllm": "engine `vllm`; install it with `pip install '.[gpu]'`",
    "scikit-learn": "`r2-serve replay` and `r2-train fit`; `pip install '.[eval]'`",
    "trl": "`r2-train grpo`; `pip install '.[train]'`",
}
"""What each optional package is for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warning", "error"]
    what: str
    found: str
    advice: str = ""
    """What to do about it; empty if it is well."""


def machine_findings(config: ServeConfig | None) -> Iterator[Finding]:
    """What was found, and what of it does not suffice for `config`."""
    yield Finding("ok", "R2", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    yield Finding("ok", "cores and memory", f"{len(os.sched_getaffinity(0))} cores, {_memory()}")
    yield from _disks()
    yield from _packages(config)
    yield from _gpus(config)
    if config is not None:
        yield from _hub(config)
        yield _port(config)


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / _GIB:.1f} GiB"


def _disks() -> Iterator[Finding]:
    weights = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    places = {"here (runs)": Path(), "temporary files (Ray's logs)": Path(tempfile.gettempdir())}
    for name, path in {**places, f"weights ({weights})": weights}.items():
        free = shutil.disk_usage(_existing(path)).free
        low = free < MIN_DISK_BYTES
        advice = (
            f"free some: below {MIN_DISK_BYTES / _GIB:.0f} GiB logs or weights may fill it" if low else ""
        )
        yield Finding("warning" if low else "ok", f"disk, {name}", f"{free / _GIB:.1f} GiB free", advice)
    shared = Path("/dev/shm")  # noqa: S108  # nosec B108
    if shared.is_dir():
        total = shutil.disk_usage(shared).total
        low = total < MIN_SHARED_MEMORY_BYTES
        advice = "start the container with --shm-size=2g: Ray keeps its objects there" if low else ""
        yield Finding("warning" if low else "ok", "shared memory", f"{total / _GIB:.1f} GiB", advice)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _packages(config: ServeConfig | None) -> Iterator[Finding]:
    kinds = {server.engine.kind for server in config.model_apps.values()} if config else set()
    needed = {name for name in ("vllm", "transformers") if name in kinds}
    for name, purpose in PACKAGES.items():
        installed = _version(name)
        if installed is not None:
            yield Finding("ok", f"package {name}", installed)
        elif name in needed:
            yield Finding("error", f"package {name}", "not installed", f"the config needs it: {purpose}")
        else:
            yield Finding("ok", f"package {name}", f"not installed; it is for {purpose}")


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name) + (" (build for CPUs)" if name != package else "")
        except PackageNotFoundError:
            continue
    return None


def _gpus(config: ServeConfig | None) -> Iterator[Finding]:
    engines = [server.engine for server in config.model_apps.values()] if config else []
    wanted = any(isinstance(engine, VllmEngineConfig) for engine in engines)
    command = shutil.which("nvidia-smi")
    if command is None:
        found = "nvidia-smi is not here, so there is no NVIDIA driver"
        advice = "run the vllm models of this config on a machine with GPUs" if wanted else ""
        yield Finding("warning" if wanted else "ok", "GPUs", found, advice)
        return
    fields = "--query-gpu=name,memory.total,driver_version"
    done = subprocess.run(  # noqa: S603  # nosec B603
        [command, fields, "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        text = " ".join((done.stderr or done.stdout).split())
        yield Finding("error", "GPUs", f"nvidia-smi failed: {text}", "mend the driver before anything else")
        return
    for index, line in enumerate(done.stdout.strip().splitlines()):
        driver = line.rsplit(",", 1)[-1].strip()
        is_old = driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < MIN_DRIVER
        advice = f"install driver {MIN_DRIVER} or newer: torch here is built for CUDA 13" if is_old else ""
        yield Finding("warning" if is_old else "ok", f"GPU {index}", line.strip(), advice)


def _hub(config: ServeConfig) -> Iterator[Finding]:
    """The token for gated models of the Hugging Face hub, if the config has a model of the hub."""
    from r2_serve.ops.prefetch import checkpoints_of

    if not checkpoints_of(config):
        return
    has_token = os.environ.get("HF_TOKEN") or (Path.home() / ".cache/huggingface/token").exists()
    found = "set" if has_token else "not set; gated models, such as those of Meta, need it"
    yield Finding("ok", "HF_TOKEN", found)


def _port(config: ServeConfig) -> Finding:
    from r2_serve.ops.local.cluster import check_port_is_free

    try:
        check_port_is_free(config.http_host, config.http_port)
    except ConfigError as e:
        advice = "stop what listens there, or take another port with `r2-serve up --port`"
        return Finding("warning", "port", e.message, advice)
    return Finding("ok", "port", f"{config.http_port} of {config.http_host} is free")
