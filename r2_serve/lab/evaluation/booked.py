"""The book of an evaluation: a reply that was paid for once answers the same question again.

A reply answers a call again if all that decides it is the same: the model with its engine's configuration (of
a checkpoint on this machine, its weights), the messages, the sampling and the adapter. Then:

- A greedy call (temperature 0) asks for the one reply that is most probable, so one reply answers every
  policy that asks for it. Whether log-probabilities were asked for does not change the reply; a call that
  asks for them is answered by a record that has a confidence.
- Any other call draws a sample. Policies that shared samples would share their luck, and several samples of
  one prompt would be one and the same. So a sample answers only the seed, policy and task that drew it, and
  the n-th equal call of a task gets its n-th sample. A run that goes on gets its own samples back.

A call that failed is not in the book. Two equal calls at the same time are asked once. A reply from the book
counts in the cost of a policy as if it had been asked for: the cost of a policy does not depend on what was
compared before it. It does not count in what the run spends.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from r2_serve.calls.pool import EngineFor
from r2_serve.config import ModelConfig, ModelServerConfig
from r2_serve.errors import BookError
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.asker import Asked, Asker
from r2_serve.lab.evaluation.identity import call_key, identity_of
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.outcomes.book import Outcome, RecordedCall, read_book
from r2_serve.lab.runs import RunError
from r2_serve.router.synthesis import confidence
from r2_serve.types import (
    CallRecord,
    Completion,
    Delta,
    Engine,
    EngineCall,
    ModelCard,
    Query,
    Trace,
    Usage,
    text_hash,
)

Ask = Callable[[], Awaitable[Completion]]


@dataclass
class Purpose:
    """The pair of policy and task that calls are made for."""

    owner: str
    """Seed, policy and task: what a sample belongs to."""
    task: Task
    num_reused: int = 0
    reused_usd: Decimal = Decimal(0)
    draws: Counter[str] = field(default_factory=Counter)
    """How often each sampled call was made."""


PURPOSE: ContextVar[Purpose | None] = ContextVar("PURPOSE", default=None)


@contextmanager
def purpose_of(owner: str, task: Task) -> Iterator[Purpose]:
    """Has every call of the block be made for `owner`."""
    purpose = Purpose(owner, task)
    token = PURPOSE.set(purpose)
    try:
        yield purpose
    finally:
        PURPOSE.reset(token)


class Keeper:
    """Answers calls from a book, and writes the replies that the book lacks into it."""

    def __init__(self, log: JsonlLog, records: Iterable[Outcome]) -> None:
        self._log = log
        self._records = {record.call.key: record for record in records if record.call is not None}
        self._under_way: dict[str, asyncio.Event] = {}
        self.num_asked, self.num_reused, self.asked_usd = 0, 0, Decimal(0)
        self.fault: str | None = None
        """Why the book cannot be written any more."""

    async def reply(self, card: ModelCard, identity: str, call: EngineCall, ask: Ask) -> Completion:
        """The book's reply to `call`, or else what `ask` gives. Raises: the error of `ask`."""
        purpose = PURPOSE.get()
        if purpose is None:
            return await ask()
        key = _key(identity, call, purpose)
        while True:
            if (found := self._found(key, call)) is not None:
                return self._reused(found, card, call, purpose)
            if key not in self._under_way:
                break
            await self._under_way[key].wait()
        over = self._under_way[key] = asyncio.Event()
        try:
            start_s = time.monotonic()
            reply = await ask()
            self._keep(_record(purpose, card, call, key, reply, time.monotonic() - start_s))
            return reply
        finally:
            del self._under_way[key]
            over.set()

    def _found(self, key: str, call: EngineCall) -> Outcome | None:
        record = self._records.get(key)
        if record is None or record.call is None:
            return None
        return record if record.call.logprobs or not call.sampling.logprobs else None

    def _reused(self, record: Outcome, card: ModelCard, call: EngineCall, purpose: Purpose) -> Completion:
        assert record.call is not None
        self.num_reused += 1
        purpose.num_reused += 1
        purpose.reused_usd += card.cost_usd(record.call.usage)
        is_told = call.sampling.logprobs and record.confidence
        return Completion(
            text=record.reply,
            usage=record.call.usage,
            is_usage_estimated=record.call.is_usage_estimated,
            finish_reason=record.call.finish_reason,
            logprobs=(math.log(record.confidence),) if is_told and record.confidence else None,
        )

    def _keep(self, record: Outcome) -> None:
        self.num_asked += 1
        self.asked_usd += record.cost_usd
        assert record.call is not None
        self._records[record.call.key] = record
        try:
            self._log.append(record)
        except RunError as e:
            self.fault = e.message


@contextmanager
def opened(path: Path) -> Iterator[Keeper]:
    """The keeper of the book at `path`, which is made if there is none.

    Raises: BookError if it is no book; RunError if another run writes it.
    """
    if path.suffix == ".gz":
        raise BookError(f"{path}: a run adds to its book, which cannot be compressed: unpack it with gunzip")
    path.parent.mkdir(parents=True, exist_ok=True)
    with JsonlLog(path) as log:
        yield Keeper(log, read_book(path) if path.stat().st_size else ())


def _key(identity: str, call: EngineCall, purpose: Purpose) -> str:
    """The hash of what decides the reply; for a sample, of whose and which one it is too."""
    plain = call.model_copy(update={"sampling": call.sampling.model_copy(update={"logprobs": False})})
    key = call_key(identity, plain)
    if is_greedy(call):
        return key
    purpose.draws[key] += 1
    return hashlib.sha256(f"{key}/{purpose.owner}/{purpose.draws[key]}".encode()).hexdigest()


def is_greedy(call: EngineCall) -> bool:
    """Whether the reply is the most probable one. Without a temperature, a provider draws."""
    return call.sampling.temperature == 0


def _record(
    purpose: Purpose, card: ModelCard, call: EngineCall, key: str, reply: Completion, seconds: float
) -> Outcome:
    """The record of a reply. A greedy reply to the bare task is one to the whole task; others are steps."""
    task, usage = purpose.task, reply.usage
    prompt = "\n\n".join(message.text for message in call.messages)
    is_whole = is_greedy(call) and call.adapter is None and len(call.messages) == 1 and prompt == task.query
    return Outcome(
        task=task.id,
        step="" if is_whole else key[:16],
        model=card.name,
        prompt=prompt,
        prompt_hash=text_hash(prompt),
        reply=reply.text,
        tokens_in=usage.prompt_tokens,
        tokens_out=usage.completion_tokens,
        tokens_cached=usage.cached_read_tokens,
        seconds=round(seconds, 6),
        cost_usd=card.cost_usd(usage),
        confidence=confidence(reply.logprobs),
        call=RecordedCall(
            key=key,
            usage=usage,
            is_usage_estimated=reply.is_usage_estimated,
            finish_reason=reply.finish_reason,
            logprobs=call.sampling.logprobs,
        ),
    )


# -- engines and endpoints behind a book ---------------------------------------------------------------------


@dataclass(frozen=True)
class BookedEngine:
    """An engine whose replies are kept. Streams are not, as an evaluation asks for none."""

    engine: Engine
    model: ModelConfig
    identity: str
    keeper: Keeper

    async def generate(self, call: EngineCall) -> Completion:
        return await self.keeper.reply(self.model, self.identity, call, lambda: self.engine.generate(call))

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        return self.engine.stream(call)

    def __getattr__(self, name: str) -> object:
        """What the engine can do besides, such as counting tokens."""
        return getattr(self.engine, name)


def booked_engines(engine_for: EngineFor, apps: Mapping[str, ModelServerConfig], keeper: Keeper) -> EngineFor:
    """`engine_for` with every engine behind a book."""

    def booked(model: ModelConfig) -> Engine:
        return BookedEngine(engine_for(model), model, identity_of(model, apps), keeper)

    return booked


@dataclass(frozen=True)
class BookedAsker:
    """An endpoint behind a book: plain questions to pool models are kept.

    What a virtual model answers is not: its calls are made behind the endpoint, which shows no prompts.
    """

    asker: Asker
    cards: Mapping[str, ModelCard]
    url: str
    keeper: Keeper

    async def ask(self, query: Query) -> Asked:
        card = self.cards.get(query.model)
        if card is None:
            return await self.asker.ask(query)
        asked: list[Asked] = []

        async def ask() -> Completion:
            asked.append(await self.asker.ask(query))
            return _completion(asked[0])

        call = EngineCall(messages=query.messages, sampling=query.sampling)
        reply = await self.keeper.reply(card, f"{self.url}|{query.model}", call, ask)
        return asked[0] if asked else _asked(query, card, reply)


def _completion(asked: Asked) -> Completion:
    """The reply of a pool model as its engine may have given it."""
    call = next((call for call in reversed(asked.trace.calls) if call.outcome == "ok"), None)
    return Completion(
        text=asked.text,
        usage=call.usage if call else Usage(),
        is_usage_estimated=call.is_estimated if call else True,
        finish_reason="stop",
        logprobs=(math.log(asked.confidence),) if asked.confidence else None,
    )


def _asked(query: Query, card: ModelCard, reply: Completion) -> Asked:
    call = CallRecord(
        stage="pass_through",
        model=card.name,
        usage=reply.usage,
        cost_usd=card.cost_usd(reply.usage),
        is_estimated=reply.is_usage_estimated,
    )
    trace = Trace(
        request_id=query.request_id,
        model=query.model,
        query=query.messages[-1].text,
        calls=(call,),
        answer=reply.text,
        cost_usd=call.cost_usd,
    )
    return Asked(reply.text, confidence(reply.logprobs), trace)
