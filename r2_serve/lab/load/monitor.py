"""Samples a run at even intervals: its counts, the router's queue and the replicas."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from r2_serve.errors import R2Error
from r2_serve.lab.load.open_loop import OpenLoop
from r2_serve.lab.load.records import ClusterCounts, QueueState, TimelineSample
from r2_serve.lab.load.replicas import ReadReplicas
from r2_serve.ops.local.controller_log import PolicyFailed

log = logging.getLogger(__name__)
_RUNNING = re.compile(r"^r2_requests_running(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_QUEUED = re.compile(r"^r2_requests_queued(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
"""A sample per router replica."""


@dataclass
class Monitor:
    """Runs until it is cancelled. What cannot be read is left out of a sample and never ends a run."""

    loop: OpenLoop
    http: httpx.AsyncClient
    replicas: ReadReplicas | None
    interval_s: float
    on_sample: Callable[[TimelineSample], None]

    async def run(self) -> None:
        while True:
            next_s = (self.loop.elapsed_s // self.interval_s + 1) * self.interval_s
            await self.look()
            await asyncio.sleep(max(0.0, next_s - self.loop.elapsed_s))

    async def look(self) -> None:
        """Takes one sample. Its time is that at which replicas were counted."""
        cluster = await self._cluster()
        t_s = self.loop.elapsed_s
        self.on_sample(self.loop.counts.sample(t_s, await self._queue(), cluster))

    async def _cluster(self) -> ClusterCounts:
        if self.replicas is None:
            return ClusterCounts()
        try:
            return await asyncio.to_thread(self.replicas)
        except PolicyFailed:
            raise  # it ends the run
        except R2Error as e:
            log.warning("replicas cannot be counted: %s", e.message)
            return ClusterCounts()

    async def _queue(self) -> QueueState | None:
        url = str(self.http.base_url).rstrip("/").removesuffix("/v1") + "/metrics"
        try:
            response = await self.http.get(url, timeout=self.interval_s)
            return queue_state(response.text)
        except (httpx.HTTPError, ValueError, OverflowError):
            return None


def queue_state(page: str) -> QueueState | None:
    """The sum over all router replicas on a page of `/metrics`; None if the page has no such samples.

    Raises: ValueError or OverflowError if a sample is not a finite number.
    """
    running, queued = ([int(float(v)) for v in sample.findall(page)] for sample in (_RUNNING, _QUEUED))
    return QueueState(running=sum(running), queued=sum(queued)) if running and queued else None
