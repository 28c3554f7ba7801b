"""What happens to a query can be watched: in its own stream, and as a feed of all queries a key may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from r2_serve.client import ask_streamed, chat_body, new_client, question
from r2_serve.config import EventsConfig, RouterConfig, ServerConfig
from r2_serve.engines.events import EventReader
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineUnavailable
from r2_serve.http.api import create_app
from r2_serve.http.events import event_json
from r2_serve.http.keys import new_key
from r2_serve.router.events import MOST_WAITING, SPARE, Audience, EventBus, Follower
from r2_serve.router.router import in_process
from r2_serve.traces import TraceWriter
from r2_serve.types import Event, Trace
from r2_serve.types.events import MOST_CHARS
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.load_endpoint import serving
from tests.support.waiting import until

PLAN = plan_json("height of Mont Blanc", "compare #1 with 4000 m")
SECRET = "is Mont Blanc higher than 4000 m"
KINDS = [
    "started",
    "decided",
    "called",
    "planned",
    "called",
    "allocated",
    "step_started",
    "called",
    "called",
    "step_done",
    "step_started",
    "called",
    "step_done",
    "answered",
]
"""The events of a plan of two steps, the first of which is tried twice."""

Seen = list[tuple[str, dict[str, Any]]]


def app_of(server: ServerConfig | None = None, **virtual: Any) -> Any:
    replies: dict[str, Any] = {
        "small": [EngineUnavailable("down"), "4806 m"],
        "large": ["higher"],
        "decomposer": [PLAN],
        "allocator": [allocation_json("small", "large")],
    }
    engines = {name: ScriptedEngine(replies[name]) for name in replies}
    server, models = server or ServerConfig(), tuple(model(name) for name in engines)
    router = in_process(
        RouterConfig(models=models, server=server), routing(**virtual), lambda card: engines[card.name]
    )
    return create_app(router, server, environment={})


async def events_of(url: str, **fields: Any) -> tuple[list[Event], str]:
    """The events in the stream of one query, and its answer."""
    body = {**chat_body(question("r2", SECRET), is_streamed=True, has_events=True), **fields}
    async with new_client(url) as http:
        pieces = [piece async for piece in ask_streamed(http, body)]
    found = [piece.r2.event for piece in pieces if piece.r2 is not None and piece.r2.event is not None]
    return found, "".join(piece.text for piece in pieces)


def test_stream_tells_each_thing_that_happens_in_order() -> None:
    async def run() -> tuple[list[Event], str]:
        async with serving(app_of()) as url:
            return await events_of(url)

    events, answer = asyncio.run(run())
    assert [event.kind for event in events] == KINDS
    assert answer == "higher"
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    first_try = next(e.called for e in events if e.called and e.called.stage == "execute")
    assert (first_try.outcome, first_try.error) == ("failed", "EngineUnavailable")
    spent = sum(event.called.cost_usd for event in events if event.called)
    assert events[-1].cost_usd == spent


def test_gate_tells_each_model_it_asked() -> None:
    gate = {"ask": ("small", "large"), "accept": ({"kind": "agreement"},)}

    async def run() -> list[Event]:
        async with serving(app_of(plan="never")) as url:
            return (await events_of(url, r2={"events": True, "gate": gate}))[0]

    asked = [event.asked for event in asyncio.run(run()) if event.asked]
    assert [(ask.model, ask.outcome) for ask in asked] == [("small", "escalated"), ("large", "accepted")]


def test_client_of_openai_reads_a_stream_with_events() -> None:
    async def run() -> str:
        async with serving(app_of()) as url, openai.AsyncOpenAI(api_key="none", base_url=url) as client:
            stream = await client.chat.completions.create(
                model="r2",
                messages=[{"role": "user", "content": SECRET}],
                stream=True,
                extra_body={"r2": {"events": True}},
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    assert asyncio.run(run()) == "higher"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": True}),
    ],
    ids=["no stream", "another dialect"],
)
def test_events_are_refused_where_they_cannot_be_sent(path: str, body: dict[str, Any]) -> None:
    async def run() -> httpx.Response:
        async with serving(app_of()) as url, httpx.AsyncClient() as http:
            return await http.post(f"{url}{path}", json={"model": "r2", "r2": {"events": True}, **body})

    reply = asyncio.run(run())
    assert reply.status_code == 400
    assert "events" in reply.text


@asynccontextmanager
async def feed(
    url: str, key: str | None = None, query: str = ""
) -> AsyncIterator[asyncio.Queue[tuple[str, dict[str, Any]]]]:
    """The feed of events; open once the server has said so."""
    seen: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    is_open = asyncio.Event()
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def read() -> None:
        async with (
            httpx.AsyncClient() as http,
            http.stream("GET", f"{url}/r2/events{query}", headers=headers) as reply,
        ):
            reader = EventReader()
            async for chunk in reply.aiter_bytes():
                for data in reader.feed(chunk):
                    event = json.loads(data)
                    seen.put_nowait((event["kind"], event))
                    is_open.set()

    task = asyncio.create_task(read())
    try:
        await asyncio.wait_for(is_open.wait(), 20)
        seen.get_nowait()
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(url: str, key: str | None = None) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "r2", "messages": [{"role": "user", "content": SECRET}]}
    async with httpx.AsyncClient(headers=headers) as http:
        (await http.post(f"{url}/chat/completions", json=body)).raise_for_status()


async def until_answered(seen: asyncio.Queue[tuple[str, dict[str, Any]]]) -> Seen:
    found = []
    while not found or found[-1][0] != "answered":
        found.append(await asyncio.wait_for(seen.get(), 20))
    return found


def test_feed_of_an_open_endpoint_shows_every_query() -> None:
    async def run() -> Seen:
        async with serving(app_of()) as url, feed(url) as seen:
            await ask(url)
            return await until_answered(seen)

    found = asyncio.run(run())
    assert [kind for kind, _ in found] == KINDS
    assert found[0][1]["query"] == SECRET


@pytest.mark.parametrize("may_read", [False, True])
def test_key_without_limits_sees_others_but_reads_them_only_if_allowed(
    may_read: bool, tmp_path: Path
) -> None:
    """A key with limits sees its own queries alone."""
    made = [new_key(name="admin"), new_key(name="one", models=["r2"]), new_key(name="two", models=["r2"])]
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([entry.model_dump(mode="json", exclude_none=True) for _, entry in made]))
    path.chmod(0o600)
    admin, one, two = (key for key, _ in made)
    server = ServerConfig(keys_file=str(path), events=EventsConfig(texts=may_read))

    async def run() -> tuple[Any, Any, Any]:
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(serving(app_of(server)))
            all_, own, others = [await stack.enter_async_context(feed(url, key)) for key in (admin, one, two)]
            await ask(url, one)
            return await until_answered(all_), await until_answered(own), others.qsize()

    all_, own, num_others = asyncio.run(run())
    assert [kind for kind, _ in all_] == KINDS
    assert own[0][1]["query"] == SECRET
    assert num_others == 0
    assert (SECRET in json.dumps(all_)) == may_read
    assert ("Mont Blanc" in json.dumps(all_)) == may_read
    assert ("4806 m" in json.dumps(all_)) == may_read


def test_query_from_before_is_told_with_the_events_it_had() -> None:
    """The same events with the same costs, made from its trace."""

    async def run() -> tuple[Seen, Seen]:
        async with serving(app_of()) as url:
            async with feed(url) as seen:
                await ask(url)
                live = await until_answered(seen)
            async with feed(url, query="?recent=5") as seen:
                return live, await until_answered(seen)

    live, past = asyncio.run(run())
    assert sorted(kind for kind, _ in past) == sorted(KINDS)
    assert [
        (kind, event.get("answer"), event.get("cost_usd")) for kind, event in past if "answer" in event
    ] == [(kind, event.get("answer"), event.get("cost_usd")) for kind, event in live if "answer" in event]
    assert past[0][1]["query"] == SECRET and past[0][1]["began_s"] == live[0][1]["began_s"]


def test_query_at_work_is_told_to_those_who_come_later() -> None:
    gate, engine = asyncio.Event(), ScriptedEngine(["4806 m"])

    class Held(ScriptedEngine):
        async def generate(self, call: Any) -> Any:
            await gate.wait()
            return await super().generate(call)

    engines = {
        "small": engine,
        "large": Held(["higher"]),
        "decomposer": ScriptedEngine([PLAN]),
        "allocator": ScriptedEngine([allocation_json("small", "large")]),
    }
    config = RouterConfig(models=tuple(model(name) for name in engines))
    router = in_process(config, routing(), lambda card: engines[card.name])

    async def run() -> Seen:
        async with serving(create_app(router, ServerConfig(), environment={})) as url:
            asking = asyncio.create_task(ask(url))
            await until(lambda: bool(engine.calls))
            async with feed(url, query="?recent=0") as none, feed(url, query="?recent=1") as seen:
                gate.set()
                found = await until_answered(seen)
                await asking
                assert "started" not in [kind for kind, _ in await until_answered(none)]
                return found

    kinds = [kind for kind, _ in asyncio.run(run())]
    assert kinds[:2] == ["started", "decided"] and "planned" in kinds
    assert kinds.count("called") == 4 and kinds[-1] == "answered"


def test_queries_of_trace_files_are_told_after_a_restart(tmp_path: Path) -> None:
    trace = Trace(request_id="before", model="r2", query=SECRET, answer="higher", began_s=1_000.0)
    TraceWriter(tmp_path)(trace)

    async def run() -> Seen:
        server = ServerConfig(trace_dir=str(tmp_path))
        async with serving(app_of(server)) as url, feed(url, query="?recent=5") as seen:
            return await until_answered(seen)

    started, *_, answered = asyncio.run(run())
    assert (started[1]["query"], started[1]["began_s"], answered[1]["answer"]) == (SECRET, 1_000.0, "higher")


def test_key_with_limits_sees_its_own_past_alone(tmp_path: Path) -> None:
    made = [new_key(name="one", models=["r2"]), new_key(name="two", models=["r2"])]
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([entry.model_dump(mode="json", exclude_none=True) for _, entry in made]))
    path.chmod(0o600)
    (one, _), (two, _) = made

    async def run() -> tuple[Seen, str]:
        async with serving(app_of(ServerConfig(keys_file=str(path)))) as url:
            await ask(url, one)
            async with feed(url, one, "?recent=9") as own, feed(url, two, "?recent=9") as others:
                return await until_answered(own), (await asyncio.wait_for(others.get(), 20))[0]

    own, first_of_others = asyncio.run(run())
    assert own[0][1]["query"] == SECRET
    assert first_of_others == "live", "the end of the past, which is empty"


def test_number_of_past_queries_must_be_one() -> None:
    async def run() -> httpx.Response:
        async with serving(app_of()) as url, httpx.AsyncClient() as http:
            return await http.get(f"{url}/r2/events?recent=all")

    assert asyncio.run(run()).json()["error"]["param"] == "recent"


def test_event_is_written_once_for_all_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def counted(happened: Event, redact: Any) -> Any:
        written.append(happened.kind)
        return event_json(happened, redact)

    monkeypatch.setattr("r2_serve.http.events.event_json", counted)

    async def run() -> None:
        async with serving(app_of()) as url, AsyncExitStack() as stack:
            feeds = [await stack.enter_async_context(feed(url)) for _ in range(3)]
            await ask(url)
            for seen in feeds:
                assert [kind for kind, _ in await until_answered(seen)] == KINDS

    asyncio.run(run())
    assert written == KINDS


ALL = Audience(None, None)


def called(number: int) -> Event:
    return Event(kind="called", request_id=str(number), model="r2", at_s=0)


def its_id(event: Event) -> bytes:
    return event.request_id.encode() + b" "


def test_follower_that_is_too_slow_loses_the_oldest_and_is_told() -> None:
    async def run() -> None:
        bus = EventBus()
        with bus.following(ALL, its_id) as slow, bus.following(Audience("one", None), its_id) as other:
            for number in range(MOST_WAITING + SPARE + 3):
                bus.publish(called(number))
            told, num_lost = await slow.news()
            kept = [int(id) for id in told.split()]
            assert kept == list(range(num_lost, MOST_WAITING + SPARE + 3))
            assert MOST_WAITING <= len(kept) <= MOST_WAITING + SPARE and num_lost > 0
            bus.miss(2)
            assert await slow.news() == (b"", 2), "events of other replicas that did not come"
            assert await other.news() == (b"", 2)
        assert not bus.has_readers

    asyncio.run(run())


def test_followers_get_their_turns_one_after_the_other() -> None:
    """However many events there are, so that the writes of many followers do not hold up a query."""

    async def run() -> list[tuple[int, bytes]]:
        bus, turns = EventBus(), []

        async def follow(name: int, follower: Follower) -> None:
            for _ in range(2):
                turns.append((name, (await follower.news())[0]))

        with bus.following(ALL, its_id) as first, bus.following(ALL, its_id) as second:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow(1, first))
                group.create_task(follow(2, second))
                for number in range(3):
                    bus.publish(called(number))
                await until(lambda: len(turns) == 2)
                bus.publish(called(3))
        return turns

    assert asyncio.run(run()) == [(1, b"0 1 2 "), (2, b"0 1 2 "), (1, b"3 "), (2, b"3 ")]


def test_long_texts_are_cut_in_the_feed() -> None:
    """Both ends stay: long instructions at the beginning, and what was asked at the end."""
    text = "begin" + "x" * MOST_CHARS + "end"
    query = Event(kind="started", request_id="r", model="r2", at_s=0, query=text).shortened().query
    assert query is not None and len(query) == MOST_CHARS
    assert query.startswith("begin") and "…" in query and query.endswith("end")


def test_reader_that_is_too_slow_loses_the_oldest_and_is_told() -> None:
    bus = EventBus()
    with bus.reading(lambda event: True) as reader:
        for number in range(MOST_WAITING + 3):
            bus.publish(Event(kind="called", request_id=str(number), model="r2", at_s=0))
        assert reader.num_lost == 3
        assert next(reader.rest()).request_id == "3"
    assert not bus.has_readers
