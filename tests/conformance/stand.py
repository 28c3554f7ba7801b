"""What the clients talk to: `r2-serve up --in-process`, as a user starts it, before the scripted provider.

The pool has a model for each dialect that the provider speaks. `r2` is routed over them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from r2_serve.http.keys import entry_text, new_key
from r2_serve.ops.local.cluster import free_port
from tests.conformance.provider.server import KEY, PLANNER, running_provider
from tests.support.serve_apps import router_app
from tests.support.upstream import Upstream

ROUTED = "r2"
KINDS = {"chat": "openai", "responses": "openai-responses", "messages": "anthropic"}
"""Engine kind of the pool model of each dialect."""
TARGETS = (ROUTED, *KINDS)
"""The models that every client asks."""
START_S = 60.0


@dataclass(frozen=True)
class Stand:
    """The running endpoint."""

    root: str
    """Address without `/v1`."""
    key: str
    spent_key: str
    """A client key whose budget is used up."""
    provider: Upstream
    traces: Path


@contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    """Serves until the context ends; the config, the log and the traces stay in `folder`."""
    key, entry = new_key("tester")
    spent_key, spent = new_key("spender", budget_usd="0.000000001")
    (folder / "keys.yaml").write_text(entry_text(entry) + entry_text(spent))
    with running_provider() as provider:
        path = folder / "hosted.yaml"
        path.write_text(yaml.safe_dump(config(provider.base_url, folder), sort_keys=False))
        command = [sys.executable, "-m", "r2_serve.cli", "up", "--in-process", "--config", str(path)]
        environment = {**os.environ, "PROVIDER_API_KEY": KEY}
        with (folder / "r2-serve.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--port", str(free_port())],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            try:
                yield Stand(_root(process, folder), key, spent_key, provider, folder / "traces")
            finally:
                process.terminate()
                process.wait()


def _root(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            return line.split()[1].removesuffix("/v1")
    raise RuntimeError(f"r2-serve did not start: {(folder / 'r2-serve.log').read_text()}")


def config(base_url: str, folder: Path) -> dict[str, Any]:
    """The Serve config of the stand."""
    engines = {name: (kind, f"model-of-{name}") for name, kind in KINDS.items()}
    engines[PLANNER] = ("openai", PLANNER)
    virtual = {
        "description": "routed over one model of each dialect",
        "pool": list(KINDS),
        "decomposer": {"model": PLANNER, "num_samples": 1},
        "allocator": {"model": PLANNER},
    }
    limits = {"cooldown": {"first_s": 0}}  # a cell that makes a model fail must not change the next cell
    args = {
        "models": [_model(base_url, name, *engine) for name, engine in engines.items()],
        "server": {"keys_file": str(folder / "keys.yaml"), "trace_dir": str(folder / "traces")},
    }
    app = router_app(args, {"virtual_models": {ROUTED: virtual}, "limits": limits})
    return {"http_options": {"host": "127.0.0.1"}, "applications": [app]}


def _model(base_url: str, name: str, kind: str, model: str) -> dict[str, Any]:
    prices = {"usd_per_mtok_in": 0.5, "usd_per_mtok_out": 2.0, "usd_per_mtok_cached_read": 0.05}
    engine = {"kind": kind, "model": model, "base_url": base_url, "api_key_env": "PROVIDER_API_KEY"}
    return {
        "name": name,
        "context_tokens": 200_000,
        "description": f"speaks {name}",
        **prices,
        "engine": engine,
    }
