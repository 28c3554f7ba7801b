"""A replica at which somebody watches shows the queries of the others too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from r2_serve.cluster import siblings
from r2_serve.cluster.siblings import Caught, Replicas, SiblingEvents
from r2_serve.router.events import MOST_WAITING, Audience, EventBus, Follower
from r2_serve.types import Event, Trace
from tests.support.waiting import until


class Both(Replicas):
    """Two replicas in one process, as one asks both."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0
        self.is_broken = False
        self.dead: set[str] = set()
        self.buses = {name: EventBus(9) for name in ("a", "b")}
        self.siblings = {name: SiblingEvents(bus, name, self) for name, bus in self.buses.items()}

    async def ask(self, method: str, *args: object) -> list[object]:
        assert method == SiblingEvents.METHOD
        self.num_asked += 1
        if self.is_broken:
            raise RuntimeError("the controller is away")
        watcher, wants_latest = args
        assert isinstance(watcher, str)
        living = [each for name, each in self.siblings.items() if name not in self.dead]
        caught = [each.catch(watcher, wants_latest=bool(wants_latest)) for each in living]
        return [*caught, RuntimeError("a third replica has died")]

    @contextmanager
    def watched(self, name: str = "a") -> Iterator[Follower]:
        with (
            self.buses[name].following(Audience(None, None), its_id) as follower,
            self.siblings[name].watched(),
        ):
            yield follower


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    for name in ("SHORTEST_S", "LONGEST_S", "ALONE_S"):
        monkeypatch.setattr(siblings, name, 0.001)
    return Both()


def its_id(event: Event) -> bytes:
    return event.request_id.encode() + b" "


def happened(id: str) -> Event:
    return Event(kind="called", request_id=id, model="r2", at_s=0)


async def until_seen(follower: Follower, id: str) -> tuple[list[str], int]:
    seen: list[str] = []
    num_lost = 0
    while id not in seen:
        told, lost = await asyncio.wait_for(follower.news(), 20)
        num_lost += lost
        seen += told.decode().split()
    return seen, num_lost


async def test_events_of_both_come_in_order_and_once(both: Both) -> None:
    with both.watched() as follower:
        await until(lambda: both.buses["b"].has_readers)
        for number in range(5):
            both.buses["b"].publish(happened(f"b{number}"))
        both.buses["a"].publish(happened("a"))
        seen, num_lost = await until_seen(follower, "b4")
    assert [id for id in seen if id != "a"] == [f"b{number}" for number in range(5)]
    assert seen.count("a") == 1 and num_lost == 0


async def test_replica_that_watches_gives_no_events_of_others(both: Both) -> None:
    """Or two that watch each other would send each event around for ever."""
    with both.watched("a") as one, both.watched("b") as two:
        await until(lambda: both.num_asked >= 4)
        both.buses["a"].publish(happened("first"))
        both.buses["b"].publish(happened("last"))
        for follower in (one, two):
            seen = []
            while sorted(set(seen)) != ["first", "last"]:
                told, _ = await asyncio.wait_for(follower.news(), 20)
                seen += told.decode().split()
            assert len(seen) == 2


async def test_events_that_a_sibling_lost_are_counted(both: Both) -> None:
    bus, watched = both.buses["b"], both.siblings["b"]
    watched.catch("a", wants_latest=False)
    for number in range(MOST_WAITING + 4):
        bus.publish(happened(str(number)))
    assert watched.catch("a", wants_latest=False).num_lost == 4
    assert watched.catch("a", wants_latest=False) == Caught("b")


async def test_latest_queries_of_both_are_found(both: Both) -> None:
    running = Trace(request_id="now", model="r2", query="q")
    both.buses["b"].past(Trace(request_id="then", model="r2", query="q"))
    with both.buses["b"].at_work(lambda: running), both.watched():
        past, at_work = await both.siblings["a"].latest()
    assert [trace.request_id for trace in past] == ["then"]
    assert at_work == [running]


async def test_nothing_is_fetched_or_kept_once_nobody_watches(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "FORGET_S", 0.01)
    with both.watched():
        await until(lambda: both.buses["b"].has_readers)
    await until(lambda: not both.buses["b"].has_readers)
    num_asked = both.num_asked
    await asyncio.sleep(0.02)
    assert both.num_asked == num_asked


@pytest.mark.parametrize("is_told_late", [False, True])
async def test_queries_of_a_dead_replica_get_an_end(
    both: Both, monkeypatch: pytest.MonkeyPatch, is_told_late: bool
) -> None:
    """Those that began while it was watched, and those that were at work before."""
    monkeypatch.setattr(siblings, "LOST_S", 0.01)
    bus, query = both.buses["b"], {"request_id": "cut", "model": "r2", "client": "one"}
    seen: list[Event] = []

    def written(event: Event) -> bytes:
        seen.append(event)
        return its_id(event)

    with ExitStack() as stack:
        if is_told_late:
            running = Trace(**query, query="q", began_s=time.time())
            stack.enter_context(bus.at_work(lambda: running))
        follower = stack.enter_context(both.buses["a"].following(Audience(None, None), written))
        stack.enter_context(both.siblings["a"].watched())
        await both.siblings["a"].latest()
        if not is_told_late:
            bus.publish(Event(kind="started", at_s=0, began_s=time.time(), deadline_s=60, query="q", **query))
            bus.publish(Event(kind="started", request_id="whole", model="r2", at_s=0))
            bus.publish(Event(kind="answered", request_id="whole", model="r2", at_s=0))
            await until_seen(follower, "whole")
        both.dead.add("b")
        while not any(event.kind == "failed" for event in seen):
            await asyncio.wait_for(follower.news(), 20)
    (end,) = [event for event in seen if event.kind == "failed"]
    assert (end.request_id, end.client, end.error) == ("cut", "one", siblings.LOST)
    assert end.query is None and 0 <= end.at_s < 60


async def test_controller_that_is_away_costs_no_events_of_its_own(both: Both) -> None:
    both.is_broken = True
    with both.watched() as follower:
        assert await both.siblings["a"].latest() == ([], [])
        both.buses["a"].publish(happened("own"))
        assert (await until_seen(follower, "own"))[0] == ["own"]
