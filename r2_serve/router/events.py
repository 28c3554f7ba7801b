"""The events of queries as they happen: one publisher, any number of readers, none of whom slows a query."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from r2_serve.types import Event

MOST_WAITING = 2_000
"""Events that wait for one reader. A reader that falls further behind loses the oldest ones."""


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


class EventBus:
    """Takes the events of all queries of one router process to those who read them now."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []

    @property
    def has_readers(self) -> bool:
        return bool(self._readers)

    def publish(self, event: Event) -> None:
        for reader in self._readers:
            reader.give(event)

    @contextmanager
    def reading(self, wants: Callable[[Event], bool]) -> Iterator[Reader]:
        """A reader of the events from now on that it `wants`."""
        reader = Reader(wants)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
