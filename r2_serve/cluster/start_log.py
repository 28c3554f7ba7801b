"""Writes the line of a replica's cold start (`r2_serve.scaling.cold_starts`) to its log."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from r2_serve.engines.fetching import seconds_spent
from r2_serve.scaling.cold_starts import ColdStart, Moments

_log = logging.getLogger(__name__)


class StartLog:
    """One replica's start; made first of all in its constructor."""

    def __init__(self) -> None:
        self._begun_at = self._ready_at = time.time()
        self._start: ColdStart | None = None
        self._first_token_s: float | None = None

    def engine_is_ready(self) -> None:
        self._ready_at = time.time()

    async def serves(self) -> None:
        """Logs the start. Without Serve's controller the time before the constructor is left out.

        Outside a replica of Serve there is no start to log.
        """
        try:
            replica = serve.get_replica_context()
        except RayServeException:
            return
        name = replica.replica_id.unique_id
        try:
            asked_at = await asyncio.to_thread(_asked_at, replica.app_name, replica.deployment, name)
        except Exception as e:  # noqa: BLE001 - a log line must not end a replica
            _log.debug("when this replica was asked for is not known: %s", e)
            asked_at = self._begun_at
        boot_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        moments = Moments(
            asked_at=asked_at,
            host_up_at=boot_at,
            ray_up_at=_started_at(os.getppid(), boot_at),
            begun_at=self._begun_at,
            ready_at=self._ready_at,
            fetched_s=seconds_spent(),
        )
        self._start = moments.parts(replica.app_name, name)
        self._write()

    def first_token(self, began_s: float) -> None:
        """Notes the end of the wait that began at `began_s` on the monotonic clock; only the first counts."""
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - began_s
            self._write()

    def _write(self) -> None:
        if self._start is not None:
            start = self._start.model_copy(update={"first_token_s": self._first_token_s})
            _log.info("%s", start.line())


def _asked_at(app: str, deployment: str, replica: str) -> float:
    details = _get_global_client().get_serve_details()["applications"][app]["deployments"][deployment]
    (start_s,) = (r["start_time_s"] for r in details["replicas"] if r["replica_id"] == replica)
    return float(start_s)


def _started_at(pid: int, boot_at: float) -> float:
    """The start of a process by Linux's /proc, else the node's boot. A worker's parent is its raylet."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
        return boot_at + int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return boot_at
