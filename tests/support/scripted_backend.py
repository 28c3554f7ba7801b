"""A `RouterBackend` that follows a script, and an ASGI connection whose client end is held by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from r2_serve.calls.budget import Purse
from r2_serve.config import ServerConfig
from r2_serve.http.admission import Admission
from r2_serve.http.api import create_app
from r2_serve.router.backend import ModelListing
from r2_serve.router.events import EventBus
from r2_serve.types import (
    Allocation,
    Answer,
    CallRecord,
    Delta,
    ModelCard,
    OnDelta,
    Plan,
    Query,
    Subtask,
    Trace,
    Usage,
)

USAGE = Usage(prompt_tokens=30, completion_tokens=7)
SMALL = ModelCard(
    name="org/small", usd_per_mtok_in=Decimal("0.05"), usd_per_mtok_out=Decimal("0.1"), context_tokens=4096
)
LISTINGS = (
    ModelListing("r2", is_virtual=True, description="routed"),
    ModelListing(
        "org/small",
        is_virtual=False,
        description="cheap",
        card=SMALL,
        abilities=frozenset({"chat", "json_schema"}),
    ),
)
CALLS = (
    CallRecord(
        stage="decompose",
        model="org/small",
        usage=Usage(prompt_tokens=10, completion_tokens=2),
        cost_usd=Decimal("0.0000007"),
    ),
    CallRecord(
        stage="execute",
        model="org/small",
        usage=Usage(prompt_tokens=20, completion_tokens=5),
        cost_usd=Decimal("0.0000015"),
    ),
)


def make_answer(query: Query, text: str = "Hello there") -> Answer:
    plan = query.plan or Plan(subtasks=(Subtask(id=1, text="a"), Subtask(id=2, text="b #1", depends_on=(1,))))
    trace = Trace(
        request_id=query.request_id,
        model=query.model,
        query="the query",
        plan=plan,
        allocation=Allocation(models=("org/small",) * len(plan.subtasks)),
        calls=CALLS,
        answer=text,
        duration_s=0.5,
        overhead_s=0.0125,
        cost_usd=Decimal("0.0000022"),
        worker_cost_usd=Decimal("0.0000015"),
    )
    return Answer(
        text=text,
        finish_reason="stop",
        usage=USAGE,
        cost_usd=trace.cost_usd,
        models=("org/small",),
        num_subtasks=len(plan.subtasks),
        overhead_s=0.0125,
        trace=trace,
    )


@dataclass
class ScriptedBackend:
    """Gives `pieces`, waits for `gate` where there is one, then answers `text` or raises `error`."""

    text: str = "Hello there"
    pieces: Sequence[str] = ("Hello", " there")
    error: Exception | None = None
    gate: asyncio.Event | None = None
    unready: str = ""
    unwell: str = ""
    confidence: float | None = None
    listings: Sequence[ModelListing] = LISTINGS
    prices_as_of: str = "2026-11-01"
    deadline_s: float = 120.0
    events: EventBus = field(default_factory=EventBus)
    queries: list[Query] = field(default_factory=list)
    has_started: asyncio.Event = field(default_factory=asyncio.Event)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def models(self) -> Sequence[ModelListing]:
        return self.listings

    async def count_tokens(self, query: Query) -> int:
        self.queries.append(query)
        return 17

    async def ready(self) -> tuple[bool, str]:
        return not self.unready, self.unready or self.unwell

    async def answer(
        self, query: Query, on_delta: OnDelta | None = None, purse: Purse | None = None
    ) -> Answer:
        self.queries.append(query)
        if on_delta:
            for piece in self.pieces:
                await on_delta(Delta(text=piece))
        self.has_started.set()
        try:
            if self.gate:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise
        if self.error:
            raise self.error
        return make_answer(query, self.text).model_copy(update={"confidence": self.confidence})


def make_app(
    backend: ScriptedBackend,
    environment: dict[str, str] | None = None,
    admission: Admission | None = None,
    **server: Any,
) -> Any:
    given = environment or {"CLIENT_KEYS": "key-one, key-two"}
    ids = iter(f"id{i}" for i in range(1, 10_000))
    clock, new_id = (lambda: 1_750_000_000.9), (lambda: next(ids))
    return create_app(
        backend, ServerConfig(**server), admission=admission, environment=given, clock=clock, new_id=new_id
    )


def make_client(backend: ScriptedBackend, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(make_app(backend, **options)), base_url="http://r2"
    )


def chat_body(**parameters: Any) -> dict[str, Any]:
    return {"model": "r2", "messages": [{"role": "user", "content": "hi"}], **parameters}


@dataclass
class Connection:
    """One request to an ASGI app, message by message."""

    app: Any
    body: bytes
    is_whole: bool = True
    authorization: str = ""
    path: str = "/v1/chat/completions"
    inbox: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    outbox: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": self.body, "more_body": not self.is_whole})
        headers = [(b"content-type", b"application/json"), (b"authorization", self.authorization.encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": self.path,
            "headers": headers,
            "query_string": b"",
            "root_path": "",
        }
        self.task = asyncio.ensure_future(self.app(scope, self.inbox.get, self.outbox.put))

    def disconnect(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def next_body(self) -> bytes:
        """The next piece of the body, the status line skipped."""
        message = await self.outbox.get()
        return message["body"] if message["type"] == "http.response.body" else await self.next_body()


def connect(app: Any, **parameters: Any) -> Connection:
    return Connection(app, json.dumps(chat_body(**parameters)).encode())
