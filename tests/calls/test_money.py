"""No cent is lost or made up in 10,000 calls by clients and models of every mood, on three seeds, in virtual
time.

Six accounts are kept, by different code: the engines' own count, the ledger in the trace, the reply's body,
its header, Prometheus, and the keys' book of spend. They must agree exactly."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import LimitsConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import (
    AnswerWithheld,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    ReplicaDied,
)
from r2_serve.http.api import create_app
from r2_serve.http.keys import entry_text, new_key
from r2_serve.http.metrics import Metrics
from r2_serve.http.spend import SpendBook
from r2_serve.router.router import in_process
from r2_serve.types import CallRecord, Completion, Delta, EngineCall, Trace, Usage
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.remote_stages import make_stages_remote
from tests.support.scripted_backend import Connection
from tests.support.virtual_time import run

NUM_CALLS = 10_000 // 3
AT_ONCE = 50
WORKERS = ("small", "large")
FAILURES = (
    EngineUnavailable("down"),
    EngineUnavailable("busy", 2.0),
    EngineUnavailable("busy", 60.0),
    EngineRefused("no"),
    AnswerWithheld("filtered"),
    InvalidReply("?"),
)
HANGS_S = 500.0
POOR_USD = Decimal("0.05")
LIMITS = LimitsConfig(deadline_s=120, max_calls=40, max_attempts=3)


class Moody:
    """An engine that answers, fails, hangs or breaks off, and counts its calls and the usage it reported."""

    def __init__(self, rng: random.Random, replies: Sequence[str]) -> None:
        self.num_asked, self.reported = 0, Counter[Usage]()
        self._rng, self._replies = rng, replies

    async def generate(self, call: EngineCall) -> Completion:
        self.num_asked += 1
        failure = await self._mood()
        if failure is not None:
            raise self._telling(failure)
        return Completion(
            text=self._rng.choice(self._replies), finish_reason="stop", **self._usage_or_estimate()
        )

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        self.num_asked += 1
        failure = await self._mood()
        words = self._rng.choice(self._replies).split(" ")
        for i, word in enumerate(words[: self._rng.randrange(3)] if failure else words):
            yield Delta(text=" " * bool(i) + word)
            await asyncio.sleep(self._rng.choice((0, 0.3)))
        if failure is not None:
            raise self._telling(failure)
        if self._rng.random() < 0.95:
            yield Delta(finish_reason=self._rng.choice(("stop", "length")), **self._usage_or_estimate())

    async def _mood(self) -> EngineError | None:
        await asyncio.sleep(
            self._rng.choice((0, 0.01, 0.5, 2, 2, HANGS_S)) if self._rng.random() < 0.5 else 0.1
        )
        return self._rng.choice(FAILURES) if self._rng.random() < 0.2 else None

    def _telling(self, failure: EngineError) -> EngineError:
        failure = copy(failure)
        if self._rng.random() < 0.3:
            failure.usage = self._usage()
            self.reported[failure.usage] += 1
        return failure

    def _usage_or_estimate(self) -> dict[str, Any]:
        usage, is_reported = self._usage(), self._rng.random() < 0.9
        self.reported[usage] += is_reported
        return {"usage": usage, "is_usage_estimated": not is_reported}

    def _usage(self) -> Usage:
        return Usage(prompt_tokens=self._rng.randrange(1, 3_000), completion_tokens=self._rng.randrange(700))


@dataclass
class Market:
    """An endpoint over moody models, and its clients."""

    seed: int
    folder: Path
    is_remote: bool = False
    """Whether decomposer and allocator keep ledgers of their own."""
    limits: LimitsConfig = LIMITS
    num_samples: int = 2
    traces: list[Trace] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        plans = [plan_json("a", "b", "c #1 #2"), plan_json("a", "b #1", "c #1", "d #2 #3"), "no plan"]
        picks = [allocation_json(*rng.choices(WORKERS, k=k)) for k in (3, 4)] + ["none"]
        replies = {
            "small": ["the cheap answer"],
            "large": ["a dear answer", ""],
            "decomposer": plans,
            "allocator": picks,
        }
        self.engines: dict[str, Any] = {name: Moody(rng, texts) for name, texts in replies.items()}
        prices = {"usd_per_mtok_in": Decimal("0.0333"), "usd_per_mtok_out": Decimal("1.07")}
        chain = {"small": ("large",), "decomposer": ("large",)}
        models = tuple(model(name, fallbacks=chain.get(name, ()), timeout_s=40, **prices) for name in replies)
        self.metrics = Metrics()
        routed = routing(limits=self.limits, decomposer={"num_samples": self.num_samples})
        self.router = in_process(
            RouterConfig(models=models),
            routed,
            lambda config: self.engines[config.name],
            [self.metrics.observe, self.traces.append],
        )
        self.stages = make_stages_remote(self.router) if self.is_remote else []
        rich, poor = new_key("rich"), new_key("poor", budget_usd=POOR_USD)
        self.keys = {entry.name: key for key, entry in (rich, poor)}
        self.key_of: dict[str, str] = {}
        """Name of the key, by question."""
        keys_file, self.book = self.folder / "keys.yaml", self.folder / "spend.sqlite"
        keys_file.write_text(entry_text(rich[1]) + entry_text(poor[1]))
        server = ServerConfig(max_running=AT_ONCE, keys_file=str(keys_file), spend_file=str(self.book))
        self.app = create_app(self.router, server, metrics=self.metrics)

    @property
    def num_calls(self) -> int:
        return sum(engine.num_asked for engine in self.engines.values())

    async def trade(self) -> dict[str, list[dict[str, Any]]]:
        """What each client got, by its question, message by message."""
        inbox: dict[str, list[dict[str, Any]]] = {}

        async def work() -> None:
            while self.num_calls < NUM_CALLS:
                question = f"question {len(inbox)}"
                inbox[question] = []
                inbox[question] = await self._one(question)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        return inbox

    async def _one(self, question: str) -> list[dict[str, Any]]:
        rng = self.rng
        r2: dict[str, Any] = {"trace": rng.random() < 0.3}
        name = rng.choices(("r2", *WORKERS), (8, 1, 1))[0]
        if name == "r2" and rng.random() < 0.4:
            r2["policy"] = rng.choice(("all:small", "random", "final-only:small,large"))
        if rng.random() < 0.1:
            r2["deadline_s"] = rng.choice((0.05, 1, 5, 30))
        if rng.random() < 0.05:
            r2["max_cost_usd"] = rng.choice((0.000001, 0.002, 0.004))
        body = {
            "model": name,
            "messages": [{"role": "user", "content": question}],
            "stream": rng.random() < 0.5,
            "r2": r2,
        }
        self.key_of[question] = rng.choices(("rich", "poor"), (3, 1))[0]
        return await self.ask(
            body,
            self.key_of[question],
            leaves_after_s=rng.choice((0, 0.05, 0.3, 2.5, 20)) if rng.random() < 0.15 else None,
        )

    async def ask(
        self, body: dict[str, Any], key: str = "rich", *, leaves_after_s: float | None = None
    ) -> list[dict[str, Any]]:
        connection = Connection(self.app, json.dumps(body).encode(), authorization=f"Bearer {self.keys[key]}")
        if leaves_after_s is not None:
            asyncio.get_running_loop().call_later(leaves_after_s, connection.disconnect)
        await connection.task
        return [connection.outbox.get_nowait() for _ in range(connection.outbox.qsize())]

    def lost(self) -> tuple[list[CallRecord], Counter[str]]:
        """Calls that cancelled remote stages could not report, and how many estimates replace them."""
        estimates = Counter[str]()
        for stage, name, num_calls in zip(
            self.stages, ("decomposer", "allocator"), (self.num_samples, 1), strict=False
        ):
            estimates[name] = num_calls * len(stage.lost)
        return [
            call
            for stage in self.stages
            for ledgers in stage.lost
            for ledger in ledgers
            for call in ledger.calls
        ], estimates


@pytest.fixture(
    scope="module",
    params=[(1, False), (2, False), pytest.param((3, True), marks=[pytest.mark.ray, pytest.mark.smoke])],
    ids=["seed 1", "seed 2", "seed 3, remote stages"],
)
def market(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Market:
    seed, is_remote = request.param
    market = Market(seed, tmp_path_factory.mktemp("market"), is_remote)
    market.inbox = run(market.trade())  # type: ignore[attr-defined]
    return market


def bodies_of(messages: list[dict[str, Any]]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Headers, and each JSON body or event."""
    if not messages:
        return {}, []
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    text = b"".join(message.get("body", b"") for message in messages).decode()
    if "event-stream" not in headers["content-type"]:
        return headers, [json.loads(text)] if text else []
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return headers, [json.loads(line) for line in lines]


def test_every_behaviour_of_the_scripted_provider_occurs(market: Market) -> None:
    """What follows is worth nothing where this does not hold."""
    calls = [call for trace in market.traces for call in trace.calls]
    assert len(calls) >= NUM_CALLS
    assert {call.outcome for call in calls} == {"ok", "failed", "cancelled"}
    assert {call.stage for call in calls} == {"decompose", "allocate", "execute", "pass_through"}
    assert {call.error for call in calls} > {
        "EngineUnavailable",
        "EngineRefused",
        "AnswerWithheld",
        "InvalidReply",
        "CancelledError",
    }
    assert max(call.attempt for call in calls) >= 4, "a fallback after three attempts"
    errors = Counter((trace.error or "answered").partition(":")[0] for trace in market.traces)
    wanted = {
        "answered",
        "cancelled by the client",
        "DeadlineExceeded",
        "BudgetExceeded",
        "SubtaskFailed",
        "EngineUnavailable",
    }
    assert wanted < errors.keys()
    assert errors["answered"] > 150
    assert errors["QuotaExceeded"] > 0
    assert bool(market.lost()[0]) == market.is_remote


def test_every_call_is_accounted_for(market: Market) -> None:
    """Models asked, as they counted themselves, against the ledgers: no call is missing, and none made up."""
    in_ledgers = Counter(call.model for trace in market.traces for call in trace.calls)
    unreported, estimates = market.lost()
    asked = Counter({name: engine.num_asked for name, engine in market.engines.items()})
    assert asked - Counter(call.model for call in unreported) == in_ledgers - estimates


def test_reported_usage_is_booked_and_all_other_usage_is_an_estimate(market: Market) -> None:
    unreported, _ = market.lost()
    for name, engine in market.engines.items():
        calls = [call for trace in market.traces for call in trace.calls] + unreported
        booked = Counter(
            call.usage
            for call in calls
            if call.model == name and not call.is_estimated and call.usage != Usage()
        )
        assert booked == engine.reported
        free = [call for call in calls if not call.is_estimated and call.usage == Usage()]
        assert {call.error for call in free} == {"EngineRefused"}


def test_every_request_has_one_trace(market: Market) -> None:
    questions = Counter(trace.query for trace in market.traces)
    assert set(questions.values()) == {1}
    inbox = market.inbox  # type: ignore[attr-defined]
    refused = inbox.keys() - questions.keys()
    codes = [body["error"]["code"] for question in refused for body in bodies_of(inbox[question])[1]]
    assert set(codes) <= {"insufficient_quota"}, "the others left at once"


def test_trace_body_header_and_usage_agree_to_the_last_digit(market: Market) -> None:
    traces = {trace.query: trace for trace in market.traces}
    num_checked = Counter[str]()
    for question, messages in market.inbox.items():  # type: ignore[attr-defined]
        headers, bodies = bodies_of(messages)
        reports = [body["r2"] for body in bodies if "r2" in body]
        if not reports:
            continue
        trace = traces[question]
        (r2,) = reports
        exact = sum((call.cost_usd for call in trace.calls), Decimal(0))
        assert trace.cost_usd == exact == Decimal(r2["cost_usd"])
        assert "trace" not in r2 or Trace.model_validate(r2["trace"]) == trace
        assert (
            sum((result.cost_usd for result in trace.results), Decimal(0))
            <= trace.worker_cost_usd
            == Decimal(r2["worker_cost_usd"])
        )
        if "x-r2-cost-usd" in headers:
            assert Decimal(headers["x-r2-cost-usd"]) == exact
            usage = sum((call.usage for call in trace.calls), Usage())
            assert (bodies[0]["usage"]["prompt_tokens"], bodies[0]["usage"]["completion_tokens"]) == (
                usage.prompt_tokens,
                usage.completion_tokens,
            )
        num_checked["plain" if "x-r2-cost-usd" in headers else "streamed"] += 1
    assert min(num_checked["plain"], num_checked["streamed"]) > 30


def test_each_call_costs_its_tokens(market: Market) -> None:
    for call in (call for trace in market.traces for call in trace.calls):
        assert (
            call.cost_usd
            == (call.usage.prompt_tokens * Decimal("0.0333") + call.usage.completion_tokens * Decimal("1.07"))
            / 1_000_000
        )
        assert (call.outcome == "ok") == (call.error is None)


def test_spend_of_the_keys_agrees_to_the_last_digit(market: Market) -> None:
    for key in market.keys:
        costs = [trace.cost_usd for trace in market.traces if market.key_of[trace.query] == key]
        assert SpendBook(market.book).spent_usd(key, "") == sum(costs, Decimal(0)) > 0


def test_prometheus_agrees_exactly(market: Market) -> None:
    assert_prometheus_agrees(market)


def assert_prometheus_agrees(market: Market) -> None:
    text = market.metrics.render().decode()
    calls = [call for trace in market.traces for call in trace.calls]
    costs: dict[tuple[str, str], Decimal] = {}
    for call in calls:
        costs[call.model, call.stage] = costs.get((call.model, call.stage), Decimal(0)) + call.cost_usd
    scraped = re.findall(r'r2_cost_usd_total{model="(\w+)",stage="(\w+)"} (\S+)', text)
    assert {(name, stage): float(value) for name, stage, value in scraped} == {
        key: float(cost) for key, cost in costs.items()
    }
    counted = re.findall(r'r2_calls_total{model="(\w+)",outcome="(\w+)",stage="(\w+)"} (\S+)', text)
    tally = Counter((call.model, call.outcome, call.stage) for call in calls)
    assert {(name, outcome, stage): float(value) for name, outcome, stage, value in counted} == tally
    tokens: dict[tuple[str, str], float] = {}
    for call in calls:
        for direction, number in (("in", call.usage.prompt_tokens), ("out", call.usage.completion_tokens)):
            tokens[direction, call.model] = tokens.get((direction, call.model), 0) + number
    samples = re.findall(r'r2_tokens_total{direction="(\w+)",model="(\w+)"} (\S+)', text)
    assert {(direction, name): float(value) for direction, name, value in samples} == tokens


@pytest.mark.parametrize("is_remote", [False, pytest.param(True, marks=[pytest.mark.ray, pytest.mark.smoke])])
@pytest.mark.parametrize(("stage", "num_before"), [("decomposer", 0), ("allocator", 1)])
@pytest.mark.parametrize(
    ("failures", "max_calls", "status"),
    [
        ([EngineUnavailable("down", 0.0)], 2, 200),
        ([ReplicaDied("gone", 0.0, name) for name in ("one", "two")], 9, 422),
        ([KeyError("an internal error")], 9, None),
    ],
    ids=["budget", "poison", "fault"],
)
def test_calls_of_a_stage_that_fails_are_accounted_for(
    failures: list[Exception],
    max_calls: int,
    status: int | None,
    stage: str,
    num_before: int,
    is_remote: bool,
    tmp_path: Path,
) -> None:
    market = Market(
        1,
        tmp_path,
        is_remote,
        LimitsConfig(max_calls=max_calls + num_before, max_attempts=3),
        num_samples=1,
    )
    replies = {
        "decomposer": [plan_json("a", "b")],
        "allocator": [allocation_json("small", "large")],
        stage: failures,
    }
    market.engines.update({name: ScriptedEngine(replies.get(name, ["four"])) for name in market.engines})
    _, (body,) = bodies_of(
        run(market.ask({"model": "r2", "messages": [{"role": "user", "content": "two plus two"}]}))
    )
    (trace,) = market.traces
    codes = {200: None, 422: "poisonous_request"}  # 200: the rest of the budget pays for the query whole
    assert status is None or body.get("error", {}).get("code") == codes[status]
    asked = {name: len(engine.calls) for name, engine in market.engines.items() if engine.calls}
    assert asked[stage] >= len(failures)
    assert asked == Counter(call.model for call in trace.calls)
    assert trace.cost_usd == SpendBook(market.book).spent_usd("rich", "") > 0
    assert_prometheus_agrees(market)
