"""What a starting cluster says: each application that is ready, and at the limit the state of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from r2_serve.errors import EngineUnavailable
from r2_serve.ops.deploy_files.needs import replicas_of
from r2_serve.ops.local.controller_log import ControllerLog
from r2_serve.serve_config import ServeConfig

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

Say = Callable[[str], None]
"""Takes one line of progress."""
POLL_S = 0.1
LIGHT_START_S, HEAVY_START_S = 120.0, 600.0
"""Default limits of a start in seconds. Hosted, numpy and scripted models start in seconds, even on a busy
machine; weights for torch and vLLM are fetched, loaded and compiled for minutes."""
_HEAVY_ENGINES = ("vllm", "transformers")


def say_nothing(line: str) -> None:
    """The progress of a start that is not shown."""


def start_limit_s(config: ServeConfig) -> float:
    """The default limit of a start: HEAVY_START_S with GPUs or models on torch, LIGHT_START_S otherwise."""
    has_torch = any(server.engine.kind in _HEAVY_ENGINES for server in config.model_apps.values())
    has_gpu = any(entry.has_gpu for entry in replicas_of(config))
    return HEAVY_START_S if has_torch or has_gpu else LIGHT_START_S


def wait_until_running(apps: Sequence[str], limit_s: float, say: Say) -> None:
    """Says which of `apps` run, as they become ready; returns when all do.

    Raises: PolicyFailed; EngineUnavailable with Serve's reason if an application cannot run, or if not all
    run after `limit_s`.
    """
    from ray import serve

    log, start_s = ControllerLog.of_this_cluster(), time.monotonic()
    ready: dict[str, None] = {}
    while len(ready) < len(apps):
        log.check()
        found, passed_s = serve.status().applications, time.monotonic() - start_s
        for app in apps:
            status = found[app].status.value if app in found else "NOT_STARTED"
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise EngineUnavailable(f"application {app!r} is {status}: {found[app].message}")
            if status == "RUNNING" and app not in ready:
                ready[app] = None
                say(f"  {app} is ready ({len(ready)} of {len(apps)}, {passed_s:.1f} s)")
        if len(ready) < len(apps) and passed_s >= limit_s:
            raise EngineUnavailable(_too_slow([app for app in apps if app not in ready], found, limit_s))
        time.sleep(POLL_S)


def _too_slow(apps: Sequence[str], found: Mapping[str, ApplicationStatusOverview], limit_s: float) -> str:
    """The message for `apps` that do not run, with the state of each of their deployments."""
    lines = [f"after {limit_s:g} s (--start-timeout) these applications do not run:"]
    for app in apps:
        if app not in found:
            lines.append(f"  {app}: Serve has not begun to start it")
            continue
        lines.append(f"  {app} is {found[app].status.value} {found[app].message}".rstrip())
        for name, deployment in found[app].deployments.items():
            replicas = ", ".join(f"{count} {state}" for state, count in deployment.replica_states.items())
            state = f"    {name} is {deployment.status.value} (replicas: {replicas or 'none'})"
            lines.append(f"{state} {deployment.message}".rstrip())
    advice = "Give it longer with --start-timeout, or ask for less under `deployments` of what waits"
    return "\n".join([*lines, advice])
