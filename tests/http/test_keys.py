"""Client keys: hashed, with models and budgets, changed without a restart, and never overspent by requests at
once.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app as cli
from r2_serve.config import RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError
from r2_serve.http.api import create_app
from r2_serve.http.keys import ClientKey, KeyRing, entry_text, new_key, read_keys_file, require_keys
from r2_serve.http.spend import KeyPurse, SpendBook
from r2_serve.router.router import Router, in_process
from r2_serve.types import Completion, Engine, EngineCall, Usage
from tests.http.test_api import error_of
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.remote_stages import make_stages_remote
from tests.support.scripted_backend import ScriptedBackend, chat_body, make_app
from tests.support.waiting import until

URL = "/v1/chat/completions"
CALL_USD = Decimal("0.00003")
"""The cost of each call of `Gated`: 10 tokens in at 1 USD per 1M, 10 out at 2 USD."""
BOUND_USD = Decimal("0.000054")
"""The ledger's bound of that cost: 34 tokens in (2 bytes and the template's allowance), 10 out."""


class Gated:
    """An engine whose calls all wait for `gate`; then each costs `CALL_USD`."""

    def __init__(self) -> None:
        self.gate, self.num_calls = asyncio.Event(), 0

    async def generate(self, call: EngineCall) -> Completion:
        self.num_calls += 1
        await self.gate.wait()
        return Completion(
            text="ok", usage=Usage(prompt_tokens=10, completion_tokens=10), finish_reason="stop"
        )

    def stream(self, call: EngineCall) -> Any:
        raise NotImplementedError


def router_of(**engines: Any) -> Router:
    """A virtual model `r2` over small and large."""
    made: dict[str, Engine] = {
        name: e if hasattr(e, "generate") else ScriptedEngine(e) for name, e in engines.items()
    }
    models = tuple(model(name, max_tokens=10) for name in made)
    return in_process(RouterConfig(models=models), routing(), lambda config: made[config.name])


class Keys:
    """A keys file, and the keys in clear."""

    def __init__(self, folder: Path) -> None:
        self.path, self.in_clear, self._entries = folder / "keys.yaml", dict[str, str](), dict[str, str]()

    def add(self, name: str, **fields: Any) -> str:
        """The header of a new key."""
        self.in_clear[name], entry = new_key(name, **fields)
        self._entries[name] = entry_text(entry)
        self.path.write_text("".join(self._entries.values()))
        return f"Bearer {self.in_clear[name]}"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@asynccontextmanager
async def serving(backend: Any, keys: Keys, **server: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, ServerConfig(keys_file=str(keys.path), **server))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        yield client


async def ask(
    client: httpx.AsyncClient, key: str, model_name: str = "small", **parameters: Any
) -> httpx.Response:
    return await client.post(
        URL, json={**chat_body(**parameters), "model": model_name}, headers={"authorization": key}
    )


# -- the file --


def test_new_key_is_shown_once_and_stored_as_a_digest(tmp_path: Path) -> None:
    options = [
        "--name",
        "alice",
        "--budget-usd",
        "10",
        "--period",
        "month",
        "--model",
        "r2",
        "--model",
        "small",
    ]
    done = CliRunner().invoke(cli, ["keys", "new", *options])
    assert done.exit_code == 0, done.output
    key = done.stderr.split()[-1]
    path = tmp_path / "keys.yaml"
    path.write_text(done.stdout)
    assert key.startswith("sk-r2-") and len(key) == 49 and key not in done.stdout
    (entry,) = read_keys_file(path)
    assert (entry.name, entry.models, entry.budget_usd, entry.budget_period) == (
        "alice",
        ("r2", "small"),
        Decimal(10),
        "month",
    )
    assert KeyRing(path=path).find(f"Bearer {key}") == entry
    assert KeyRing(path=path).find(f"Bearer {key[:-1]}") is None


@pytest.mark.parametrize(
    ("option", "value"),
    [("--name", "a b"), ("--budget-usd", "0"), ("--budget-usd", "ten"), ("--period", "year")],
)
def test_wrong_field_of_a_key_is_refused_by_name(option: str, value: str) -> None:
    done = CliRunner().invoke(cli, ["keys", "new", "--name", "alice", option, value])
    assert done.exit_code == 1
    assert value in done.stderr and option.removeprefix("--").replace("-", "_") in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("[]", "holds no key"),
        ("{name: a}", "the whole file"),
        ("- {name: a, sha256: sk-r2-this-is-the-key-itself}", "0.sha256"),
        (f"- {{name: a, sha256: '{'0' * 64}', budget: 1}}", "0.budget: Extra inputs"),
        (
            f"- {{name: a, sha256: '{'0' * 64}'}}\n- {{name: a, sha256: '{'1' * 64}'}}",
            "name 'a' stands twice",
        ),
        (f"- {{name: a, sha256: '{'0' * 64}'}}\n- {{name: b, sha256: '{'0' * 64}'}}", "sha256"),
        (f"- {{name: a, sha256: '{'0' * 64}', models: []}}", "0.models"),
        (f"- {{name: a, sha256: '{'0' * 64}', budget_usd: yes}}", "0.budget_usd: must be a number"),
        (f"- {{name: a, sha256: '{'0' * 64}', budget_usd: .inf}}", "0.budget_usd: Input should be a finite"),
        (f"- {{name: on, sha256: '{'0' * 64}'}}", "0.name"),
        ("- [", "cannot read"),
    ],
)
def test_wrong_keys_file_is_refused_without_showing_its_content(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        KeyRing(path=path)
    assert message in refused.value.message
    assert "the-key-itself" not in refused.value.message


@pytest.mark.parametrize("text", ["", "[]"])
def test_last_key_is_revoked_by_taking_it_out_of_the_file(keys: Keys, text: str) -> None:
    alice = keys.add("alice")
    ring = KeyRing(path=keys.path, clock=lambda: 0.0)
    keys.path.write_text(text)
    assert ring.is_required and ring.find(alice) is None


def test_missing_keys_file_does_not_open_the_endpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys file"):
        make_app(ScriptedBackend(), keys_file=str(tmp_path / "none.yaml"))


def test_keys_change_without_a_restart_and_a_broken_file_changes_nothing(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    alice = keys.add("alice")
    ring = KeyRing(path=keys.path, clock=lambda: now_s)
    bob = keys.add("bob")
    assert ring.find(bob) is not None, "the first look is due at once"
    now_s += 2
    keys.path.write_text("- {name: ")
    assert ring.find(alice) is not None and ring.find(bob) is not None
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    now_s += 2
    keys.path.write_text(yaml.safe_dump([entry.model_dump(mode="json") for entry in [new_key("carol")[1]]]))
    assert ring.find(alice) is None and ring.find(bob) is None
    now_s += 2
    keys.path.unlink()
    assert ring.is_required and ring.find(alice) is None


@pytest.mark.parametrize("asked", ["first", "last", "unknown"])
def test_every_key_is_compared_in_constant_time_even_after_a_match(
    keys: Keys, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {name: keys.add(name) for name in ("first", "second", "last")}
    ring = KeyRing.of(
        ServerConfig(keys_file=str(keys.path), api_keys_env="CLIENTS"), {"CLIENTS": "from-environment"}
    )
    compared: list[str] = []

    def compare_digest(a: str, b: str, really: Callable[[str, str], bool] = hmac.compare_digest) -> bool:
        compared.append(b)
        return really(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    found = ring.find(headers.get(asked, "Bearer unknown"))
    assert (found and found.name) == (asked if asked in headers else None)
    assert sorted(compared) == sorted(
        hashlib.sha256(key.encode()).hexdigest() for key in ("from-environment", *keys.in_clear.values())
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "fe80::1"])
def test_address_that_others_can_reach_needs_keys(host: str, keys: Keys) -> None:
    with pytest.raises(ConfigError, match="not a loopback address"):
        require_keys(host, ServerConfig())
    require_keys(host, ServerConfig(api_keys_env="CLIENT_KEYS"))
    require_keys(host, ServerConfig(keys_file=str(keys.path)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_address_needs_no_keys(host: str) -> None:
    require_keys(host, ServerConfig())


# -- rank in a busy model --


@pytest.mark.parametrize(
    ("key", "asked", "rank"),
    [
        ("user", None, "user"),
        ("user", "training", "training"),
        ("batch", None, "batch"),
        ("batch", "user", "batch"),
        ("batch", "training", "training"),
    ],
)
async def test_request_ranks_no_higher_than_its_key(
    keys: Keys, key: str, asked: str | None, rank: str
) -> None:
    backend = ScriptedBackend()
    header = keys.add("a", priority=key)
    async with serving(backend, keys) as client:
        extras = {} if asked is None else {"r2": {"priority": asked}}
        assert (await ask(client, header, "r2", **extras)).status_code == 200
        assert (await ask(client, header, "r2", r2={"priority": "urgent"})).status_code == 400
    assert [query.priority for query in backend.queries] == [rank]


# -- models --


async def test_key_can_use_and_see_its_own_models_only(keys: Keys) -> None:
    limited, free = keys.add("limited", models=["r2"]), keys.add("free")
    async with serving(ScriptedBackend(), keys) as client:
        assert (await ask(client, limited, "r2")).status_code == 200
        assert (await ask(client, free, "org/small")).status_code == 200
        refused = [await ask(client, limited, name) for name in ("org/small", "org/smal", "nothing")]
        refused.append(await client.get("/v1/models/org/small", headers={"authorization": limited}))
        listed = (await client.get("/v1/models", headers={"authorization": limited})).json()
        streamed = await ask(client, limited, "org/small", stream=True)
    for response in (*refused, streamed):
        assert response.status_code == 403
        error = error_of(response)
        assert (error["type"], error["param"], error["code"]) == (
            "invalid_request_error",
            "model",
            "model_not_found",
        )
        assert "limited" in error["message"]
    assert [entry["id"] for entry in listed["data"]] == ["r2"]


@pytest.mark.parametrize(
    "limits", [{"models": ["r2"]}, {"budget_usd": "1"}, {"models": ["r2"], "budget_usd": "1"}]
)
async def test_only_unrestricted_keys_see_the_spend_of_others(keys: Keys, limits: dict[str, Any]) -> None:
    limited, admin = keys.add("limited", **limits), keys.add("admin")
    async with serving(ScriptedBackend(), keys) as client:
        await ask(client, admin, "r2")
        refused = await client.get("/metrics", headers={"authorization": limited})
        shown = await client.get("/metrics", headers={"authorization": admin})
    error = error_of(refused)
    assert (refused.status_code, error["type"], error["code"]) == (
        403,
        "invalid_request_error",
        "insufficient_permissions",
    )
    assert "limited" in error["message"] and "without models and budget_usd" in error["message"]
    assert "r2_" not in refused.text
    assert shown.status_code == 200 and "r2_requests_total" in shown.text


# -- budgets --


async def test_fifty_requests_at_once_never_overspend_a_budget_for_ten(keys: Keys) -> None:
    key, admin, engine = keys.add("alice", budget_usd=str(10 * BOUND_USD)), keys.add("admin"), Gated()
    async with serving(
        router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]), keys
    ) as client:
        async with asyncio.TaskGroup() as group:
            requests = [group.create_task(ask(client, key)) for _ in range(50)]
            await until(
                lambda: sum(request.done() for request in requests) >= 40
            )  # those refused end at once
            engine.gate.set()
        statuses = [request.result().status_code for request in requests]
        assert (statuses.count(200), statuses.count(429), engine.num_calls) == (10, 40, 10)
        metrics = (await client.get("/metrics", headers={"authorization": admin})).text
        assert f'r2_key_spent_usd{{key="alice"}} {float(10 * CALL_USD)}' in metrics
        later = [await ask(client, key) for _ in range(20)]
    assert engine.num_calls == 10 + [response.status_code for response in later].count(200)
    assert engine.num_calls * CALL_USD <= 10 * BOUND_USD < (engine.num_calls * CALL_USD) + BOUND_USD
    error = error_of(later[-1])
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "budget of 0.000540 USD" in error["message"]
    assert later[-1].headers["x-should-retry"] == "false" and "retry-after" not in later[-1].headers


@pytest.mark.parametrize("is_remote", [False, pytest.param(True, marks=[pytest.mark.ray, pytest.mark.smoke])])
async def test_fifty_routed_requests_at_once_do_not_overspend(
    keys: Keys, tmp_path: Path, is_remote: bool
) -> None:
    """Decomposer and allocator run here or, as in a cluster, in processes that know no other request."""
    budget_usd = Decimal("0.02")
    most_of_a_decompose_usd = Decimal("0.004")
    key, book = keys.add("alice", budget_usd=str(budget_usd)), tmp_path / "spend.sqlite"
    plans, picks = [plan_json("left", "right #1")], [allocation_json("small", "large")]
    router = router_of(small=["a b c"], large=["d e f"], decomposer=plans, allocator=picks)
    if is_remote:
        decomposes, _ = make_stages_remote(router)
    async with serving(router, keys, spend_file=str(book)) as client:
        for _ in range(300):
            async with asyncio.TaskGroup() as group:
                requests = [group.create_task(ask(client, key, "r2")) for _ in range(50)]
            refused = [request.result() for request in requests if request.result().status_code != 200]
            assert all((r.status_code, error_of(r)["code"]) == (429, "insufficient_quota") for r in refused)
            spent_usd = SpendBook(book).spent_usd("alice", "")
            if budget_usd - spent_usd < most_of_a_decompose_usd:
                break  # the rest pays for no plan, but for many queries that go whole
    assert budget_usd - most_of_a_decompose_usd < spent_usd <= budget_usd
    if is_remote:
        assert decomposes.most_running > 1


async def test_spent_key_is_refused_before_its_request_is_queued(keys: Keys, tmp_path: Path) -> None:
    key, backend, book = keys.add("alice", budget_usd="1"), ScriptedBackend(), tmp_path / "spend.sqlite"
    SpendBook(book).add("alice", "", Decimal(1))
    async with serving(backend, keys, spend_file=str(book)) as client:
        asked = [await ask(client, key, "r2", stream=stream) for stream in (False, True)]
    assert [(response.status_code, error_of(response)["code"]) for response in asked] == [
        (429, "insufficient_quota")
    ] * 2
    assert not backend.queries


async def test_call_that_could_cost_more_than_is_left_is_not_made(keys: Keys) -> None:
    key, engine = keys.add("alice", budget_usd=str(BOUND_USD)), Gated()
    engine.gate.set()
    async with serving(
        router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]), keys
    ) as client:
        assert (await ask(client, key)).status_code == 200
        asked = [await ask(client, key), await ask(client, key, stream=True)]
        other = keys.add("bob")
    assert [response.status_code for response in asked] == [429, 429]
    assert engine.num_calls == 1
    assert other


async def test_cancelled_request_releases_what_it_held(keys: Keys) -> None:
    key, admin, engine = keys.add("alice", budget_usd=str(BOUND_USD)), keys.add("admin"), Gated()
    async with serving(
        router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]), keys
    ) as client:
        given_up = asyncio.create_task(ask(client, key))
        await until(lambda: engine.num_calls > 0)
        assert (await ask(client, key)).status_code == 429
        given_up.cancel()
        await asyncio.wait([given_up])
        metrics = (await client.get("/metrics", headers={"authorization": admin})).text
        (spent,) = (
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith('r2_key_spent_usd{key="alice"}')
        )
    assert 0 < spent < float(BOUND_USD), (
        "its prompt was sent, so it may have been billed: an estimate, not what was held"
    )


async def test_spend_survives_a_restart_and_is_shared_by_processes(keys: Keys, tmp_path: Path) -> None:
    key, engine = keys.add("alice", budget_usd=str(2 * BOUND_USD)), Gated()
    engine.gate.set()
    router, book = (
        router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]),
        str(tmp_path / "spend.sqlite"),
    )
    async with (
        serving(router, keys, spend_file=book) as first,
        serving(router, keys, spend_file=book) as second,
    ):
        assert (await ask(first, key)).status_code == (await ask(second, key)).status_code == 200
    async with serving(router, keys, spend_file=book) as restarted:
        assert (await ask(restarted, key)).status_code == 429, (
            "48 of 108 micro-dollars are left, a call may cost 54"
        )
    assert SpendBook(tmp_path / "spend.sqlite").spent_usd("alice", "") == 2 * CALL_USD


async def test_two_routers_overspend_a_shared_budget_by_calls_in_flight_at_most(
    keys: Keys, tmp_path: Path
) -> None:
    """Each router gets half of fifty requests on a budget for ten; it sees settled spend of both, holds of
    its own.
    """
    key, engine, book = keys.add("alice", budget_usd=str(10 * BOUND_USD)), Gated(), tmp_path / "spend.sqlite"
    routers = [router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]) for _ in range(2)]
    async with (
        serving(routers[0], keys, spend_file=str(book)) as first,
        serving(routers[1], keys, spend_file=str(book)) as second,
    ):
        async with asyncio.TaskGroup() as group:
            requests = [group.create_task(ask((first, second)[i % 2], key)) for i in range(50)]
            await until(lambda: sum(request.done() for request in requests) >= 30)
            assert engine.num_calls == 20, "ten in flight at each"
            engine.gate.set()
        assert [request.result().status_code for request in requests].count(200) == 20
        assert SpendBook(book).spent_usd("alice", "") == 20 * CALL_USD <= 10 * BOUND_USD + 10 * CALL_USD
        later = [await ask(client, key) for client in (first, second)]
    assert [response.status_code for response in later] == [429, 429]


async def test_open_endpoint_counts_no_spend() -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(make_app(ScriptedBackend())), base_url="http://r2"
    ) as client:
        assert (await client.post(URL, json=chat_body())).status_code == 200
        assert "r2_key_spent_usd{" not in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("period", "refills"), [("day", [True, True]), ("month", [False, True]), ("total", [False, False])]
)
def test_budget_is_full_again_in_its_next_period(period: str, refills: list[bool]) -> None:
    today = datetime.date(2026, 11, 29)
    key = ClientKey.model_validate(
        {"name": "a", "sha256": "0" * 64, "budget_usd": "1", "budget_period": period}
    )
    purse = KeyPurse(key, SpendBook(None), lambda: today)
    purse.hold(Decimal(2))
    purse.settle(Decimal(2), Decimal(1))
    assert purse.left_usd() == 0
    december = datetime.date(2026, 12, 1)
    resets_at = {"day": datetime.date(2026, 11, 30), "month": december, "total": None}[period]
    assert purse.resets_at() == resets_at
    assert resets_at is None or f"until {resets_at} 00:00 UTC" in purse.refusal().message
    for day, is_full in zip((datetime.date(2026, 11, 30), december), refills):
        today = day
        assert (purse.left_usd() == 1) == is_full


def test_sum_of_many_small_amounts_is_exact(tmp_path: Path) -> None:
    book = SpendBook(tmp_path / "spend.sqlite")
    for _ in range(1000):
        book.add("alice", "", Decimal("0.0000001"))
    assert book.spent_usd("alice", "") == Decimal("0.0001")


def test_unwritable_spend_file_does_not_fail_requests_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spend.sqlite"
    book = SpendBook(path)
    book.add("alice", "", Decimal(1))
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        book.add("alice", "", Decimal(2))
        assert book.spent_usd("alice", "") == 3
        other.execute("ROLLBACK")
    assert "2 USD of alice wait" in caplog.text
    assert SpendBook(path).spent_usd("alice", "") == 1
    book.add("alice", "", Decimal(4))
    assert SpendBook(path).spent_usd("alice", "") == book.spent_usd("alice", "") == 7


def test_spend_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spend.sqlite"
    path.write_text("nothing of the kind" * 100)
    with pytest.raises(ConfigError, match="spend_file"):
        SpendBook(path)


async def test_openai_client_does_not_retry_a_spent_quota(keys: Keys) -> None:
    key, engine = keys.add("alice", budget_usd="0.00001"), Gated()
    app = create_app(
        router_of(small=engine, large=["ok"], decomposer=["x"], allocator=["x"]),
        ServerConfig(keys_file=str(keys.path)),
    )
    num_requests = 0

    async def counted(request: httpx2.Request) -> None:
        nonlocal num_requests
        num_requests += 1

    http = openai.DefaultAsyncHttpxClient(
        transport=httpx2.ASGITransport(app), event_hooks={"request": [counted]}
    )
    client = openai.AsyncOpenAI(
        base_url="http://r2/v1", api_key=key.split()[1], http_client=http, max_retries=2
    )
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}])
    assert (refused.value.code, refused.value.type, num_requests) == (
        "insufficient_quota",
        "insufficient_quota",
        1,
    )
    await client.close()
