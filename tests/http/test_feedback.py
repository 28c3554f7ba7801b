"""A client rates its own answers by their ids in every dialect; others cannot, and nothing grows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from r2_serve.config import FeedbackConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, FeedbackLost, QueryNotFound
from r2_serve.feedback import FeedbackStore, Rating, read_scores
from r2_serve.http.api import create_app
from r2_serve.http.metrics import Metrics
from r2_serve.http.rating import MAX_COMMENT_CHARS
from r2_serve.router.router import in_process
from r2_serve.types import Trace
from tests.support.in_process import allocation_json, model, plan_json, routing

PLAN = plan_json("height of Mont Blanc", "compare #1 with 4000 m")
REPLIES: dict[str, Any] = {
    "small": ["4806 m"],
    "large": ["higher"],
    "decomposer": [PLAN],
    "allocator": [allocation_json("small", "large")],
}
KEYS = {"authorization": "Bearer key-one"}, {"authorization": "Bearer key-two"}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
    "/v1/responses": {"input": "hi"},
}


@asynccontextmanager
async def serving(**server: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The real endpoint over scripted models, with two keys."""
    config = RouterConfig(
        models=tuple(model(name) for name in REPLIES), server=ServerConfig(api_keys_env="KEYS", **server)
    )
    store, metrics = FeedbackStore(config.server), Metrics()
    router = in_process(
        config, routing(), lambda card: ScriptedEngine(REPLIES[card.name]), [metrics.observe, store.note]
    )
    app = create_app(
        router, config.server, metrics=metrics, feedback=store, environment={"KEYS": "key-one,key-two"}
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://r2", headers=KEYS[0]
    ) as client:
        yield client


async def rate(
    client: httpx.AsyncClient, request_id: object, score: object = 1, **more: Any
) -> httpx.Response:
    headers = more.pop("headers", {})
    body = {"request_id": request_id, "score": score, **more}
    return await client.post("/v1/r2/feedback", json=body, headers=headers)


async def asked_id(client: httpx.AsyncClient) -> str:
    reply = await client.post("/v1/chat/completions", json={"model": "r2", **ASKED["/v1/chat/completions"]})
    return str(reply.json()["id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "name"), [*((path, "r2") for path in ASKED), ("/v1/chat/completions", "small")]
)
async def test_id_of_a_reply_in_any_dialect_is_accepted(path: str, name: str, stream: bool) -> None:
    async with serving() as client:
        reply = await client.post(path, json={"model": name, "stream": stream, **ASKED[path]})
        assert reply.status_code == 200
        rated = await rate(client, id_of(reply.text, stream=stream), 0.5)
        assert (rated.status_code, rated.json()["score"]) == (200, 0.5)
        rated = await rate(client, reply.headers["x-request-id"])
        assert (rated.status_code, rated.json()["replaced"]) == (200, True)


def id_of(text: str, *, stream: bool) -> str:
    """The id of a reply, which a stream tells in its first event."""
    if not stream:
        return str(json.loads(text)["id"])
    first = json.loads(text.split("data: ", 1)[1].split("\n")[0])
    return str(first.get("id") or first.get("message", first.get("response"))["id"])


async def test_other_keys_cannot_rate_a_query_and_do_not_learn_of_it() -> None:
    async with serving() as client:
        request_id = await asked_id(client)
        foreign = await rate(client, request_id, headers=KEYS[1])
        unknown = await rate(client, "chatcmpl-unknown")
        assert (foreign.status_code, unknown.status_code) == (404, 404)
        assert foreign.json()["error"]["code"] == unknown.json()["error"]["code"] == "query_not_found"
        assert (await rate(client, request_id, headers={"authorization": "Bearer no"})).status_code == 401
        assert (await rate(client, request_id)).status_code == 200


async def test_same_rating_changes_nothing_and_a_later_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "scores.sqlite"
    async with serving(feedback={"file": str(file)}) as client:
        request_id = await asked_id(client)
        replaced = [(await rate(client, request_id, score)).json()["replaced"] for score in (1, 1, 0)]
        assert (await rate(client, request_id, 1, step=2, source="check")).status_code == 200
    assert replaced == [False, False, True]
    task = request_id.removeprefix("chatcmpl-")
    found = {(score.task, score.step, score.source): score.score for score in read_scores(file)}
    assert found == {(task, None, "user"): 0, (task, 2, "check"): 1}
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"score": 1.5}, "score", "got 1.5, expected less than or equal to 1"),
        ({"score": "1"}, "score", 'got "1"'),
        ({"score": None}, "score", "got null"),
        ({"step": 3}, "step", "got 3, and the plan has 2 steps"),
        ({"step": 0}, "step", "greater than or equal to 1"),
        ({"source": "me"}, "source", "'user' or 'check'"),
        ({"comment": "x" * (MAX_COMMENT_CHARS + 1)}, "comment", f"at most {MAX_COMMENT_CHARS} characters"),
        ({"coment": "x"}, "coment", "did you mean comment?"),
        ({"request_id": ""}, "request_id", "a string that is not empty"),
    ],
)
async def test_wrong_rating_is_refused_by_name(wrong: dict[str, Any], param: str, says: str) -> None:
    async with serving() as client:
        body = {"request_id": await asked_id(client), "score": 1, **wrong}
        refused = await client.post("/v1/r2/feedback", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert says in refused.json()["error"]["message"]


async def test_body_that_is_no_rating_is_refused() -> None:
    async with serving() as client:
        listed = await client.post("/v1/r2/feedback", json=[])
        huge = await client.post("/v1/r2/feedback", json={"comment": "x" * 40_000})
    assert "request_id and score" in listed.json()["error"]["message"]
    assert (listed.status_code, huge.status_code) == (400, 413)


async def test_ratings_and_savings_of_each_key_are_in_the_metrics() -> None:
    async with serving() as client:
        reply = await client.post(
            "/v1/chat/completions", json={"model": "r2", **ASKED["/v1/chat/completions"]}
        )
        await rate(client, reply.json()["id"], 0.25)
        page = (await client.get("/metrics")).text
    assert 'r2_feedback_total{model="r2",source="user"} 1.0' in page
    assert 'r2_feedback_score_total{model="r2",source="user"} 0.25' in page
    saved = float(reply.headers["x-r2-saved-usd"])
    assert reply.json()["r2"]["savings"] == {
        "baseline": "large",
        "saved_usd": reply.headers["x-r2-saved-usd"],
    }
    (line,) = [line for line in page.splitlines() if line.startswith("r2_key_saved_usd{")]
    assert line.startswith('r2_key_saved_usd{baseline="large",key="env-1",model="r2"}')
    assert float(line.split()[-1]) == pytest.approx(float(saved))


# -- the store --


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def store_of(clock: Clock | None = None, **limits: Any) -> FeedbackStore:
    return FeedbackStore(ServerConfig(feedback=FeedbackConfig(**limits)), clock or Clock())


def trace(name: str, **fields: Any) -> Trace:
    return Trace(**{"request_id": name, "model": "r2", "query": "?", "answer": "!", **fields})


def is_known(store: FeedbackStore, name: str) -> bool:
    try:
        store.rate("", Rating(request_id=name, score=1))
    except QueryNotFound:
        return False
    return True


def test_oldest_queries_go_first_beyond_the_limit() -> None:
    store = store_of(max_count=10)
    for number in range(11):
        store.note(trace(f"q{number}"))
    assert [is_known(store, f"q{number}") for number in (0, 1, 2, 10)] == [False, False, True, True]


def test_queries_too_old_are_forgotten() -> None:
    clock = Clock()
    store = store_of(clock, max_age_s=100)
    store.note(trace("old"))
    clock.now_s += 200
    store.note(trace("new"))
    assert (is_known(store, "old"), is_known(store, "new")) == (False, True)


def test_of_queries_with_one_request_id_the_latest_is_rated() -> None:
    store = store_of()
    for reply in ("a", "b"):
        store.note(trace("same", reply_id=reply))
    assert store.rate("", Rating(request_id="same", score=1)).task == "b"


def test_failed_query_is_not_rated() -> None:
    store = store_of()
    store.note(trace("q", answer=None, error="DeadlineExceeded: late"))
    assert not is_known(store, "q")


def test_routers_of_one_machine_share_a_file(tmp_path: Path) -> None:
    first, second = (store_of(file=str(tmp_path / "new" / "f.sqlite")) for _ in range(2))
    first.note(trace("q"))
    assert is_known(second, "q")


def test_broken_disk_fails_no_query_and_is_told_to_raters(tmp_path: Path) -> None:
    store = store_of()
    store.note(trace("q"))
    store._db.close()
    store.note(trace("r"))
    with pytest.raises(FeedbackLost, match="send it again later"):
        store.rate("", Rating(request_id="q", score=1))
    with pytest.raises(ConfigError, match=r"feedback\.file .* cannot be used"):
        store_of(file=str(tmp_path))


def test_comment_is_kept_only_where_texts_are(tmp_path: Path) -> None:
    for keeps in (True, False):
        file = tmp_path / f"{keeps}.sqlite"
        store = FeedbackStore(ServerConfig(trace_texts=keeps, feedback=FeedbackConfig(file=str(file))))
        store.note(trace("q"))
        store.rate("", Rating(request_id="q", score=0, comment="a secret"))
        (score,) = read_scores(file)
        assert score.comment == ("a secret" if keeps else None)
