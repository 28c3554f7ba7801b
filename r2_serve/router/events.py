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

from r2_serve.router.past import PastQueries
from r2_serve.types import Event, Trace

MOST_WAITING = 2_000
"""Events that wait for one reader. A reader that falls further behind loses the oldest ones."""
TURN_S = 0.005
"""The time from one follower's turn to the next: a feed takes 200 turns a second at most. One follower hears
of an event after 5 ms; of 200, each hears of it within a second."""


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


class Told:
    """Events of one client that all who may see them get, and the bytes that they are sent as."""

    __slots__ = ("events", "sent_as")

    def __init__(self, *events: Event) -> None:
        self.events = events
        self.sent_as: dict[bool, bytes] = {}
        """The bytes with texts (True) and without, made by the first who sends them."""


class Feed:
    """The latest events that one audience may see."""

    def __init__(self) -> None:
        self.num_missing = 0
        """Events that this process did not get from other router replicas."""
        self.end = 0
        """Number of events so far."""
        self.num_followers = 0
        self._log = deque[Told](maxlen=MOST_WAITING)
        self._idle, self._ready = deque[asyncio.Future[None]](), deque[asyncio.Future[None]]()
        self._timer: asyncio.TimerHandle | None = None

    def give(self, told: Told) -> None:
        self._log.append(told)
        self.end += 1
        self.wake()

    def wake(self) -> None:
        """Gives a turn to everybody who waits for news."""
        if self._idle:
            self._ready += self._idle
            self._idle.clear()
            self._plan_turn()

    def since(self, place: int) -> list[Told]:
        """What is kept of the events from number `place` on."""
        count = min(self.end - place, len(self._log))
        return [self._log[i] for i in range(len(self._log) - count, len(self._log))]

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
        self._timer = None
        while self._ready:
            turn = self._ready.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        self._plan_turn()


class Follower:
    """One of those who get a feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.skip()

    def skip(self) -> None:
        """Leaves out what has happened so far."""
        self._place, self._num_missing = self._feed.end, self._feed.num_missing

    async def news(self) -> tuple[list[Told], int]:
        """What has happened since the last call, and the number of events that are lost to this follower."""
        feed = self._feed
        await feed.turn(has_news=(self._place, self._num_missing) != (feed.end, feed.num_missing))
        told = feed.since(self._place)
        num_lost = feed.end - self._place - len(told) + feed.num_missing - self._num_missing
        self.skip()
        return told, num_lost


class EventBus:
    """Takes the events of all queries of one router process to those who read them, and remembers some."""

    def __init__(self, num_past: int = 0) -> None:
        self.past = PastQueries(num_past)
        self._readers: list[Reader] = []
        self._feeds: dict[str | None, Feed] = {}
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
        if self._feeds:
            told = Told(event.shortened())
            for client in (None, event.client):
                if client in self._feeds:
                    self._feeds[client].give(told)

    def miss(self, num_events: int) -> None:
        """Tells followers that events of another router replica are lost."""
        for feed in self._feeds.values() if num_events else ():
            feed.num_missing += num_events
            feed.wake()

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
    def following(self, client: str | None) -> Iterator[Follower]:
        """A follower of the queries of one client key, or of all of them with None, from now on."""
        feed = self._feeds.setdefault(client, Feed())
        feed.num_followers += 1
        try:
            yield Follower(feed)
        finally:
            feed.num_followers -= 1
            if not feed.num_followers:
                del self._feeds[client]

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
