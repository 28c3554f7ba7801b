"""The events of queries as they happen: one publisher, any number of readers, none of whom slows a query.

A `Reader` gets each event of this process at once: the stream of a query that shows its own events. A
`Feed` is for many: it keeps what happened once for all its followers, and gives them their turns one after
the other, so that the work for them is spread over time and does not grow with the number of events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from r2_serve.router.past import PastQueries
from r2_serve.types import Event, Trace

MOST_WAITING = 2_000
"""Events that wait for one reader. A reader that falls further behind loses the oldest ones."""
TURN_S, BUSY_TURN_S = 0.005, 0.05
"""The time from one follower's turn to the next, while no query is at work here, and while some are:
queries go first. One follower hears of an event within 50 ms; of 200, each within a second, or 10 s."""


SPARE = 500
"""Events beyond these that a feed keeps, so that it drops many at once."""


class Place(NamedTuple):
    """Up to where a follower has read a feed."""

    events: int
    bytes: int
    missing: int


class Reader:
    """One reader's events, in their order."""

    def __init__(self, wants: Callable[[Event], bool]) -> None:
        self.num_lost = 0
        """Events that the reader was too slow for."""
        self._wants, self._waiting, self._has_some = wants, deque[Event](maxlen=MOST_WAITING), asyncio.Event()

    def give(self, event: Event) -> None:
        if self._wants(event):
            self.num_lost += len(self._waiting) == MOST_WAITING
            self._waiting.append(event)
            self._has_some.set()

    async def next(self) -> Event:
        """The next event, as soon as there is one."""
        while not self._waiting:
            self._has_some.clear()
            await self._has_some.wait()
        return self._waiting.popleft()

    def rest(self) -> Iterator[Event]:
        """The events that are here already."""
        while self._waiting:
            yield self._waiting.popleft()


@dataclass(frozen=True)
class Audience:
    """Those who get the same bytes."""

    sees: str | None
    """The client key whose queries are shown; None for all."""
    reads: str | None
    """The client key whose texts are shown; None for all."""

    def may_see(self, event: Event) -> bool:
        return self.sees in (None, event.client)

    def may_read(self, event: Event) -> bool:
        return self.reads in (None, event.client)


class Feed:
    """The latest events that one audience may see, as the bytes that all its followers are sent."""

    def __init__(self, written: Callable[[Event], bytes], is_busy: Callable[[], bool] = bool) -> None:
        self.num_missing = 0
        """Events that this process did not get from other router replicas."""
        self.num_followers = 0
        self._written, self._is_busy = written, is_busy
        self._unwritten: list[Event] = []
        """Written at the next turn, after the query has gone on."""
        self._last_turn_s = -BUSY_TURN_S
        self._kept, self._sizes = bytearray(), deque[int]()
        self._num_dropped = self._bytes_dropped = 0
        self._idle, self._ready = deque[asyncio.Future[None]](), deque[asyncio.Future[None]]()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def end(self) -> Place:
        self._write()
        return Place(
            self._num_dropped + len(self._sizes), self._bytes_dropped + len(self._kept), self.num_missing
        )

    def give(self, event: Event) -> None:
        self._unwritten.append(event)
        if len(self._unwritten) > SPARE:
            self._write()
        self.wake()

    def _write(self) -> None:
        for event in self._unwritten:
            written = self._written(event)
            self._kept += written
            self._sizes.append(len(written))
        self._unwritten.clear()
        if len(self._sizes) > MOST_WAITING + SPARE:
            self._drop(len(self._sizes) - MOST_WAITING)

    def _drop(self, count: int) -> None:
        size = sum(self._sizes.popleft() for _ in range(count))
        del self._kept[:size]
        self._num_dropped += count
        self._bytes_dropped += size

    def since(self, place: Place) -> tuple[bytes, int]:
        """The events from `place` on that are kept, and the number of those that are not."""
        self._write()
        num_lost = max(0, self._num_dropped - place.events) + self.num_missing - place.missing
        return bytes(self._kept[max(0, place.bytes - self._bytes_dropped) :]), num_lost

    def miss(self, num_events: int) -> None:
        self.num_missing += num_events
        self.wake()

    def wake(self) -> None:
        """Gives a turn to everybody who waits for news."""
        if self._idle:
            self._ready += self._idle
            self._idle.clear()
            self._plan_turn()

    async def turn(self, *, has_news: bool) -> None:
        """Waits for news, and then for those who waited before."""
        turn = asyncio.get_running_loop().create_future()
        (self._ready if has_news else self._idle).append(turn)
        self._plan_turn()
        await turn

    def _plan_turn(self) -> None:
        if self._timer is None and self._ready:
            self._timer = asyncio.get_running_loop().call_later(TURN_S, self._next_turn)

    def _next_turn(self) -> None:
        self._timer, now_s = None, asyncio.get_running_loop().time()
        if self._is_busy() and now_s < self._last_turn_s + BUSY_TURN_S:
            self._plan_turn()
            return
        self._last_turn_s = now_s
        while self._ready:
            turn = self._ready.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        self._plan_turn()


class Follower:
    """One of those who get a feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed, self._place = feed, feed.end

    def skip(self) -> None:
        """Leaves out what has happened so far."""
        self._place = self._feed.end

    async def news(self) -> tuple[bytes, int]:
        """What has happened since the last call, and the number of events that are lost to this follower."""
        await self._feed.turn(has_news=self._place != self._feed.end)
        news = self._feed.since(self._place)
        self.skip()
        return news


class EventBus:
    """Takes the events of all queries of one router process to those who read them, and remembers some."""

    def __init__(self, num_past: int = 0) -> None:
        self.past = PastQueries(num_past)
        self._readers: list[Reader] = []
        self._feeds: dict[Audience, Feed] = {}
        self._at_work: dict[int, Callable[[], Trace]] = {}

    @property
    def has_readers(self) -> bool:
        return bool(self._readers or self._feeds)

    def publish(self, event: Event) -> None:
        for reader in self._readers:
            reader.give(event)
        self.relay(event)

    def relay(self, event: Event) -> None:
        """Takes an event, perhaps of another router replica, to those who follow all of them."""
        for audience, feed in self._feeds.items():
            if audience.may_see(event):
                feed.give(event)

    def miss(self, num_events: int) -> None:
        """Tells followers that events of another router replica are lost."""
        for feed in self._feeds.values() if num_events else ():
            feed.miss(num_events)

    @contextmanager
    def reading(self, wants: Callable[[Event], bool]) -> Iterator[Reader]:
        """A reader of the events of this process from now on that it `wants`."""
        reader = Reader(wants)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    @contextmanager
    def following(self, audience: Audience, written: Callable[[Event], bytes]) -> Iterator[Follower]:
        """A follower of all replicas from now on; `written` is how an audience is sent an event."""
        feed = self._feeds.setdefault(audience, Feed(written, lambda: bool(self._at_work)))
        feed.num_followers += 1
        try:
            yield Follower(feed)
        finally:
            feed.num_followers -= 1
            if not feed.num_followers:
                del self._feeds[audience]

    @contextmanager
    def at_work(self, trace: Callable[[], Trace]) -> Iterator[None]:
        """Shows a query to those who begin to follow while it is answered; `trace` is its state."""
        self._at_work[id(trace)] = trace
        try:
            yield
        finally:
            del self._at_work[id(trace)]

    def running(self) -> list[Trace]:
        """The queries that are being answered, as they stand now."""
        return [trace() for trace in self._at_work.values()]
