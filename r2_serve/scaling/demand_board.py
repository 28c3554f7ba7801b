"""The board between routers and the autoscaling policy: an actor on which each router writes its forecast.

The policy makes the board, because it is the reader; without a policy routers write nothing. The board lives
in the name space of the cluster's Serve controller and ends with it. It holds the last seconds only, so its
loss costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import ray

from r2_serve.router.demand import ModelDemand, total

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ray.actor import ActorHandle

NAME, NAMESPACE = "r2-demand-board", "serve"
PUBLISH_S = 0.25
"""Time between two forecasts of a router that has queries."""
HEARTBEAT_S = 2.0
"""Time between two forecasts of a router that has none."""
STALE_S = 5.0
"""A router that has written nothing for so long counts as gone."""
LOOK_S = 5.0
"""Time between a router's looks for a board."""
READ_S = 0.2
"""Time between two reads of a policy's process."""
_log = logging.getLogger(__name__)

Forecasts = Mapping[str, ModelDemand]
"""Demand by application."""


class DemandBoard:
    """The latest forecast of each router."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[float, Forecasts]] = {}

    def write(self, router: str, forecasts: Forecasts) -> None:
        self._latest[router] = (self._clock(), forecasts)

    def read(self) -> dict[str, ModelDemand] | None:
        """The sum over all routers; None if none has written lately."""
        oldest_s = self._clock() - STALE_S
        self._latest = {router: entry for router, entry in self._latest.items() if entry[0] >= oldest_s}
        return total([forecasts for _, forecasts in self._latest.values()]) if self._latest else None


async def write_forecasts(router: str, forecasts: Callable[[], Forecasts]) -> None:
    """Writes for ever, over all failures: the demand of a silent router would be missing from the sum."""
    while True:
        try:
            board = await asyncio.to_thread(_find_board)
            if board is not None:
                await _keep_writing(board, router, forecasts)
        except Exception as e:  # noqa: BLE001 - it tries again
            _log.warning("no forecast on the demand board: %s: %s", type(e).__name__, e)
        await asyncio.sleep(LOOK_S)


async def _keep_writing(board: ActorHandle, router: str, forecasts: Callable[[], Forecasts]) -> None:
    """Writes until something fails, and raises that."""
    written: Forecasts = {}
    written_s = -HEARTBEAT_S
    while True:
        latest = forecasts()
        if latest != written or time.monotonic() - written_s >= HEARTBEAT_S:
            await board.write.remote(router, latest)
            written, written_s = latest, time.monotonic()
        await asyncio.sleep(PUBLISH_S)


class _Reader:
    """Keeps the board's latest forecasts, and never waits for it."""

    def __init__(self) -> None:
        self._board: ActorHandle | None = None
        self._forecasts: Forecasts | None = None
        self._read_s = self._asked_s = -STALE_S
        self._is_asking = False

    def latest(self, app: str) -> ModelDemand | None:
        now_s = time.monotonic()
        if not self._is_asking and now_s - self._asked_s >= READ_S:
            self._ask(now_s)
        if self._forecasts is None or now_s - self._read_s > STALE_S:
            return None
        return self._forecasts.get(app, ModelDemand())

    def _ask(self, now_s: float) -> None:
        self._asked_s, self._is_asking = now_s, True
        try:
            if self._board is None:
                self._board = _make_board()
            self._board.read.remote().future().add_done_callback(self._take)
        except Exception as e:  # noqa: BLE001 - scaling goes on without the board
            self._fail(e)

    def _take(self, answer: Future[dict[str, ModelDemand] | None]) -> None:
        """Runs in a thread of Ray."""
        try:
            self._forecasts = answer.result()
        except Exception as e:  # noqa: BLE001 - scaling goes on without the board
            self._fail(e)
            return
        self._read_s, self._is_asking = time.monotonic(), False

    def _fail(self, error: Exception) -> None:
        _log.warning("the demand board does not answer, so models scale by ongoing requests: %s", error)
        self._board, self._is_asking = None, False


_reader = _Reader()


def latest_demand(app: str) -> ModelDemand | None:
    """The demand on an application a moment ago, for the policies of one process. It never waits.

    None if no router has written for some seconds, or if this process is not part of a cluster, as when a
    config is checked. An application for which no router has plans has an empty demand.
    """
    return _reader.latest(app) if ray.is_initialized() else None


def _make_board() -> ActorHandle:
    """The cluster's board, made if there is none."""
    options = {"name": NAME, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(DemandBoard).options(**options).remote()


def _find_board() -> ActorHandle | None:
    try:
        return ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        return None
