"""What the replicas of the router tell each other: Serve sends a client to one of them, which asks all.

While somebody watches queries at one replica, it fetches the events of the others a few times a second, and
they remember only what it has not fetched yet. Nobody watches: nothing is fetched, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from ray import serve
from ray.serve.handle import DeploymentHandle

from r2_serve.router.events import EventBus, Reader
from r2_serve.router.past import events_of
from r2_serve.types import Event, Trace

TIMEOUT_S = 3.0
"""Limit for the answers of all replicas, well under the 10 s after which Prometheus gives up a scrape."""
SHORTEST_S, LONGEST_S = 0.25, 1.0
"""Between two fetches of events: the short time after some came, twice as long after each without any."""
ALONE_S = 5.0
"""The time after which a replica that is alone looks for others."""
FORGET_S = 10.0
"""A replica that has not fetched events for so long does not get them."""
LOST_S = 10.0
"""A replica of which nothing was heard for so long has ended, and the queries at work in it with it."""
LOST = "lost: its router replica ended"
_log = logging.getLogger(__name__)


class Replicas:
    """All replicas of the deployment that this process is one of."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None

    async def ask(self, method: str, *args: object) -> list[object]:
        """What `method` returns in each replica, this one included; an exception where one failed.

        Raises: Exception if they cannot be asked.
        """
        if self._handle is None:
            context = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        response = self._handle.broadcast(method, *args)
        return list(await response.results_async(timeout_s=TIMEOUT_S, return_exceptions=True))


@dataclass
class Caught:
    """What one replica gives another that watches."""

    name: str
    """The replica that gives it."""
    events: list[Event] = field(default_factory=list)
    """What has happened since the last time."""
    num_lost: int = 0
    past: list[Trace] = field(default_factory=list)
    """The latest finished queries, if they were asked for."""
    running: list[Trace] = field(default_factory=list)
    """The queries that are being answered, if they were asked for."""


class SiblingEvents:
    """The events of the other replicas. `METHOD` of the deployment must return `catch(...)`."""

    METHOD = "caught_events"

    def __init__(self, bus: EventBus, name: str, replicas: Replicas) -> None:
        self._bus, self._name, self._replicas = bus, name, replicas
        self._watchers: dict[str, _Watcher] = {}
        self._num_watched = 0
        self._heard: dict[str, _Heard] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    def catch(self, watcher: str, *, wants_latest: bool) -> Caught:
        """What has happened here since `watcher`, another replica, asked last."""
        if watcher == self._name:
            return Caught(self._name)
        found = self._watchers.get(watcher) or self._new_watcher(watcher)
        caught = found.take()
        if wants_latest:
            caught.past, caught.running = self._bus.past.traces(), self._bus.running()
        return caught

    def _new_watcher(self, name: str) -> _Watcher:
        watcher = _Watcher(self._name, self._bus, lambda: self._watchers.pop(name))
        self._watchers[name] = watcher
        return watcher

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this is open, the events of the other replicas come to the bus."""
        self._num_watched += 1
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_on())
        try:
            yield
        finally:
            self._num_watched -= 1
            if not self._num_watched:
                self._fetching.cancel()
                self._fetching = None
                self._heard.clear()

    async def latest(self) -> tuple[list[Trace], list[Trace]]:
        """The latest finished queries of the other replicas, and those being answered."""
        caught = await self._fetch(wants_latest=True)
        past = [trace for each in caught for trace in each.past]
        return past, [trace for each in caught for trace in each.running]

    async def _fetch_on(self) -> None:
        wait_s = SHORTEST_S
        while True:
            caught = await self._fetch(wants_latest=False)
            has_news = any(each.events for each in caught)
            wait_s = SHORTEST_S if has_news else min(2 * wait_s, LONGEST_S)
            await asyncio.sleep(wait_s if len(caught) > 1 else ALONE_S)

    async def _fetch(self, *, wants_latest: bool) -> list[Caught]:
        async with self._one_at_a_time:
            try:
                answers = await self._replicas.ask(self.METHOD, self._name, wants_latest)
            except Exception as e:  # noqa: BLE001 - the events of this replica go on
                _log.warning("events of the other router replicas are missing: %s: %s", type(e).__name__, e)
                return []
            caught = [answer for answer in answers if isinstance(answer, Caught)]
            for each in caught:
                self._bus.miss(each.num_lost)
                for event in each.events:
                    self._bus.relay(event)
                self._heard.setdefault(each.name, _Heard()).take(each)
            self._end_lost_queries()
            return caught

    def _end_lost_queries(self) -> None:
        """Tells the end of queries whose replica has ended, as no other replica knows what became of them."""
        silent = [name for name, heard in self._heard.items() if heard.ago_s() > LOST_S]
        for name in silent:
            for started in self._heard.pop(name).at_work.values():
                at_s = max(0.0, time.time() - (started.began_s or time.time()))
                update = {"kind": "failed", "at_s": at_s, "error": LOST, "query": None, "deadline_s": None}
                self._bus.relay(started.model_copy(update=update))


class _Heard:
    """What was heard last of another replica."""

    def __init__(self) -> None:
        self.at_work: dict[tuple[str, str], Event] = {}
        """The first event of each query without an end."""
        self._heard_s = time.monotonic()

    def ago_s(self) -> float:
        return time.monotonic() - self._heard_s

    def take(self, caught: Caught) -> None:
        self._heard_s = time.monotonic()
        for event in (*(events_of(trace)[0] for trace in caught.running), *caught.events):
            query = event.client, event.request_id
            if event.kind == "started":
                self.at_work[query] = event
            elif event.kind in ("answered", "failed"):
                self.at_work.pop(query, None)
        if caught.num_lost:  # perhaps the end of some
            self.at_work = {query: event for query, event in self.at_work.items() if not _is_overdue(event)}


def _is_overdue(started: Event) -> bool:
    return (started.began_s or 0.0) + (started.deadline_s or 0.0) < time.time()


class _Watcher:
    """Another replica that watches this one."""

    def __init__(self, name: str, bus: EventBus, forget: Callable[[], object]) -> None:
        self._name = name
        """The replica that is watched."""
        self._stack = ExitStack()
        self._reader: Reader = self._stack.enter_context(bus.reading(lambda event: True))
        self._num_told_lost = 0
        self._stack.callback(forget)
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> Caught:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(FORGET_S, self._stack.close)
        num_lost = self._reader.num_lost - self._num_told_lost
        self._num_told_lost = self._reader.num_lost
        return Caught(self._name, [event.shortened() for event in self._reader.rest()], num_lost)
