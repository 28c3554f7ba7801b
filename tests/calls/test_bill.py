"""The ledger equals the provider's own bill over 10,000 mixed calls with faults, call by call and exactly.

Calls are plain and streamed, with `n`, tools, images, cached prompts, thoughts and long prompts in a dearer
tier, direct and in plans. Wherever the usage arrived, the two amounts are equal. What the client was not told
(cut streams, time-outs, replies without usage) is booked as a marked estimate and compared by itself. A
refused call costs nothing on either side, and what the keys have spent is the sum of it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from r2_serve.config import HostedEngineConfig, LimitsConfig, ModelConfig, RouterConfig
from r2_serve.engines.hosted import HostedEngine
from r2_serve.errors import R2Error
from r2_serve.http.keys import ClientKey
from r2_serve.http.spend import Purses, SpendBook
from r2_serve.router.router import in_process
from r2_serve.types import CallRecord, Delta, Engine, Message, Query, Sampling, Trace
from tests.support.billing_provider import SILENT_MODEL, BillingProvider, PriceList, billing_provider
from tests.support.in_process import plan_of, routing

NUM_CALLS = 10_000
AT_ONCE = 40
SEED = 13
PRICES = {
    "cheap": PriceList("0.15", "0.6", cached_read="0.075"),
    "thinker": PriceList("1.25", "10", cached_read="0.125", cached_write="1.6", thought="7"),
    "tiered": PriceList("3", "15", "0.3", "3.75", tier_over=1_000, tier_factor=2),
    SILENT_MODEL: PriceList("1", "2"),
}
USUAL = ("cheap", "thinker", "tiered")
TIMEOUT_S, SHORT_TIMEOUT_S = 300.0, 0.5
"""The long one ends no call on a busy machine."""
KEYS = ("ann", "bob", "eve")
MODELS, SHARES = (*USUAL, SILENT_MODEL, "away"), (29, 29, 29, 0.5, 12.5)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
PART_OF_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@dataclass
class Books:
    """What the router wrote down."""

    purses: Purses
    traces: list[Trace] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    """The key of each request, by its id."""

    @property
    def calls(self) -> Iterator[tuple[int, CallRecord]]:
        """Every call, with the number of its request."""
        return ((int(trace.request_id), call) for trace in self.traces for call in trace.calls)


def card(name: str, prices: PriceList, base_url: str, *fallbacks: str) -> ModelConfig:
    fields = {
        "usd_per_mtok_in": prices.prompt,
        "usd_per_mtok_out": prices.reply,
        "usd_per_mtok_cached_read": prices.cached_read,
        "usd_per_mtok_cached_write": prices.cached_write,
        "usd_per_mtok_reasoning": prices.thought,
    }
    tiers = []
    if prices.tier_over is not None:
        dearer = {key: Decimal(usd) * prices.tier_factor for key, usd in fields.items() if usd is not None}
        tiers = [{"over_prompt_tokens": prices.tier_over, **dearer}]
    engine = HostedEngineConfig(kind="openai", model=name, base_url=base_url)
    timeout_s = SHORT_TIMEOUT_S if name == SILENT_MODEL else TIMEOUT_S
    rest = {"price_tiers": tiers, "fallbacks": fallbacks, "timeout_s": timeout_s, "context_tokens": 10**6}
    return ModelConfig.model_validate({"name": name, "engine": engine, **fields, **rest})


def config_of(provider: BillingProvider) -> RouterConfig:
    """The provider's models, and one at a port where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    cards = [card(name, prices, provider.base_url) for name, prices in PRICES.items()]
    return RouterConfig(models=(*cards, card("away", PRICES["cheap"], closed, "cheap")))


def asked(number: int, dice: random.Random) -> Query:
    """A request of any kind, which names itself to the provider."""
    text = f"{'document ' * dice.choices((1, 20, 200, 1_000), (4, 4, 2, 1))[0]}<<{number}>>"
    content: Any = ({"type": "text", "text": text}, PART_OF_IMAGE) if dice.random() < 0.1 else text
    forwarded: dict[str, Any] = {}
    if dice.random() < 0.2:
        forwarded["tools"] = TOOLS
    if dice.random() < 0.1:
        forwarded["n"] = dice.randrange(2, 5)
    fields: dict[str, Any] = {"model": dice.choices(MODELS, SHARES)[0]}
    if dice.random() < 0.15 and isinstance(content, str):
        steps, forwarded = plan_of("one", "two of #1"), {}
        fields = {"model": "r2", "plan": steps, "pinned": {1: "cheap", 2: dice.choice(USUAL)}}
    limit = dice.choice((None, 500))
    sampling = Sampling(forwarded=forwarded, max_tokens=limit)
    messages = (Message(role="user", content=content),)
    return Query(request_id=str(number), messages=messages, sampling=sampling, **fields)


async def run(provider: BillingProvider, num_calls: int) -> Books:
    engines: list[HostedEngine] = []

    def engine_for(model: ModelConfig) -> Engine:
        assert isinstance(model.engine, HostedEngineConfig)
        engines.append(HostedEngine(model.engine))
        return engines[-1]

    books = Books(Purses(SpendBook(None), lambda: date(2026, 11, 28)))
    limits = LimitsConfig(max_attempts=2, cooldown={"first_s": 0})
    names = {"decomposer": {"model": "cheap"}, "allocator": {"model": "cheap"}}
    routed = routing(limits=limits, pool=USUAL, **names)
    router = in_process(config_of(provider), routed, engine_for, [books.traces.append])
    dice, numbers = random.Random(SEED), iter(range(num_calls))

    async def take(piece: Delta) -> None: ...

    async def client() -> None:
        for number in numbers:
            if len(provider.bill) >= num_calls:
                return
            query, key = asked(number, dice), dice.choice(KEYS)
            books.keys[query.request_id] = key
            purse = books.purses.of(ClientKey(name=key, sha256="0" * 64))
            with contextlib.suppress(R2Error):
                await router.answer(query, take if dice.random() < 0.4 else None, purse)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())
    for engine in engines:
        await engine.aclose()
    return books


def usd_by(lines: Iterator[tuple[int, Fraction]]) -> dict[int, list[Fraction]]:
    """The amounts of each request, in order of size."""
    found: dict[int, list[Fraction]] = defaultdict(list)
    for number, usd in lines:
        found[number].append(usd)
    return {number: sorted(amounts) for number, amounts in found.items()}


@pytest.fixture(scope="module")
def accounts() -> tuple[BillingProvider, Books]:
    kept: list[tuple[BillingProvider, Books]] = []  # a result of asyncio.run would be printed in full

    async def whole() -> None:
        async with billing_provider(PRICES, SEED) as provider:
            kept.append((provider, await run(provider, NUM_CALLS)))

    asyncio.run(whole())
    return kept[0]


def test_every_call_whose_usage_arrived_is_booked_at_the_providers_price(
    accounts: tuple[BillingProvider, Books],
) -> None:
    provider, books = accounts
    assert len(provider.bill) >= NUM_CALLS
    billed = usd_by((line.request, line.usd) for line in provider.bill if line.is_told)
    reached = (c for c in books.calls if not c[1].is_estimated and c[1].usage.total_tokens)
    assert usd_by((number, Fraction(call.cost_usd)) for number, call in reached) == billed
    assert sum(map(len, billed.values())) > 0.7 * NUM_CALLS
    details = [call.usage for _, call in books.calls]
    kinds: list[Callable[[Any], int]] = [
        lambda usage: usage.cached_read_tokens,
        lambda usage: usage.cached_write_tokens,
        lambda usage: usage.reasoning_tokens,
    ]
    assert all(sum(map(kind, details)) > 10_000 for kind in kinds)


def test_refused_calls_cost_nothing(accounts: tuple[BillingProvider, Books]) -> None:
    provider, books = accounts
    free = [c for _, c in books.calls if not c.is_estimated and not c.usage.total_tokens]
    away = [call for call in free if call.model == "away"]
    assert len(free) - len(away) == sum(line.is_free for line in provider.bill) > 0.05 * NUM_CALLS
    assert len(away) > 100
    assert not any(call.cost_usd for call in free)


def test_what_was_not_told_is_a_marked_estimate_near_the_truth(
    accounts: tuple[BillingProvider, Books],
) -> None:
    provider, books = accounts
    untold = [line for line in provider.bill if not line.is_told and not line.is_free]
    estimated = [(number, call) for number, call in books.calls if call.is_estimated]
    answering = [number for number, call in estimated if call.model != SILENT_MODEL]
    assert sorted(answering) == sorted(line.request for line in untold if line.model != SILENT_MODEL)
    assert len(estimated) - len(answering) > 20, "a call may time out before it has reached the provider"
    assert len(untold) > 0.05 * NUM_CALLS
    truth, booked = sum(line.usd for line in untold), sum(Fraction(call.cost_usd) for _, call in estimated)
    assert 0.5 < booked / truth < 2


def test_spend_of_the_keys_is_the_sum_of_their_calls(accounts: tuple[BillingProvider, Books]) -> None:
    _, books = accounts
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for trace in books.traces:
        sums[books.keys[trace.request_id]] += sum((c.cost_usd for c in trace.calls), Decimal(0))
        assert trace.cost_usd == sum((c.cost_usd for c in trace.calls), Decimal(0))
    assert books.purses.spent_usd() == dict(sums)
    assert set(sums) == set(KEYS)
