"""The board between routers and autoscaling policy: an actor on which each router writes its forecast, by application.

The policy makes it, as it is the one that reads; where none does, routers write nothing. It lives in the cluster's
Serve controller's name space and ends with it. What is on it is of the last seconds: losing it loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from r2_serve.router.demand import ModelDemand, total

NAME, NAMESPACE = "r2-demand-board", "serve"
PUBLISH_S = 0.25
"""Between two forecasts of a router that has queries."""
HEARTBEAT_S = 2.0
"""And of one that has none."""
STALE_S = 5.0
"""A router not heard of for so long is gone."""
LOOK_S = 5.0
"""Between a router's looks for a board."""
READ_S = 0.2
"""Between two reads of a policy's process."""
_log = logging.getLogger(__name__)

Forecasts = Mapping[str, ModelDemand]
"""By application."""


class DemandBoard:
    """Latest forecast of each router."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[float, Forecasts]] = {}

    def write(self, router: str, forecasts: Forecasts) -> None:
        self._latest[router] = (self._clock(), forecasts)

    def read(self) -> dict[str, ModelDemand] | None:
        """Of all routers together; None where none has written lately."""
        oldest_s = self._clock() - STALE_S
        self._latest = {router: entry for router, entry in self._latest.items() if entry[0] >= oldest_s}
        return total([forecasts for _, forecasts in self._latest.values()]) if self._latest else None


async def write_forecasts(router: str, forecasts: Callable[[], Forecasts]) -> None:
    """Writes for ever, whatever fails: with a router that falls silent its part of the demand would be missing from the others'."""
    while True:
        try:
            board = await asyncio.to_thread(_find_board)
            if board is not None:
                await _keep_writing(board, router, forecasts)
        except Exception as e:  # noqa: BLE001 - it is tried again
            _log.warning("no forecast on the demand board: %s: %s", type(e).__name__, e)
        await asyncio.sleep(LOOK_S)


async def _keep_writing(board: Any, router: str, forecasts: Callable[[], Forecasts]) -> None:
    """Raises: whatever fails first."""
    written: Forecasts = {}
    written_s = -HEARTBEAT_S
    while True:
        latest = forecasts()
        if latest != written or time.monotonic() - written_s >= HEARTBEAT_S:
            await board.write.remote(router, latest)
            written, written_s = latest, time.monotonic()
        await asyncio.sleep(PUBLISH_S)


class _Reader:
    """Keeps what the board says, without ever waiting for it."""

    def __init__(self) -> None:
        self._board: Any = None
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
        except Exception as e:  # noqa: BLE001 - whatever it is, scaling goes on without the board
            self._fail(e)

    def _take(self, answer: Any) -> None:
        """In a thread of Ray's."""
        try:
            self._forecasts = answer.result()
        except Exception as e:  # noqa: BLE001 - whatever it is, scaling goes on without the board
            self._fail(e)
            return
        self._read_s, self._is_asking = time.monotonic(), False

    def _fail(self, error: Exception) -> None:
        _log.warning("the demand board does not answer, so models scale by ongoing requests: %s", error)
        self._board, self._is_asking = None, False


_reader = _Reader()


def latest_demand(app: str) -> ModelDemand | None:
    """Of an application, a moment ago; for the policies of one process, which never wait.

    None where no router has been heard of for some seconds; an application that none has plans for needs nothing.
    """
    return _reader.latest(app)


def _make_board() -> Any:
    """The cluster's board, made where there is none."""
    options = {"name": NAME, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(DemandBoard).options(**options).remote()


def _find_board() -> Any:
    try:
        return ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        return None
