"""Answers queries during an evaluation: a router in this process, or an endpoint over HTTP.

A policy sees neither, only `Asker`: one query in, a reply with its trace out, or `AskFailed` with the calls
it cost. A request that fails over HTTP does not report its calls, so its cost is unknown, which is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import httpx

from r2_serve.calls.pool import EngineFor
from r2_serve.client import RequestFailed, ask, chat_body
from r2_serve.config import RouterConfig, RoutingConfig
from r2_serve.errors import R2Error
from r2_serve.router.router import in_process
from r2_serve.types import CallRecord, Query, Trace


@dataclass(frozen=True)
class Asked:
    """The answer to one query, with its trace."""

    text: str
    confidence: float | None
    """`Answer.confidence`, if the query's `sampling.logprobs` asked for it."""
    trace: Trace


class AskFailed(R2Error):
    """There is no answer; `calls` is what was spent, and all of it if `is_cost_known`."""

    def __init__(self, message: str, calls: tuple[CallRecord, ...] = (), is_cost_known: bool = True) -> None:
        Exception.__init__(self, message, calls, is_cost_known)
        self.message, self.calls, self.is_cost_known = message, calls, is_cost_known


class Asker(Protocol):
    """Answers queries, many at once."""

    async def ask(self, query: Query) -> Asked:
        """Raises: AskFailed."""
        ...


class InProcessAsker:
    """A router and its engines in this process."""

    def __init__(self, config: RouterConfig, routing: RoutingConfig, engine_for: EngineFor) -> None:
        self._failed: dict[str, Trace] = {}
        self._router = in_process(config, routing, engine_for, [self._keep_failed])

    async def ask(self, query: Query) -> Asked:
        try:
            answer = await self._router.answer(query)
            return Asked(answer.text, answer.confidence, answer.trace)
        except R2Error as e:
            trace = self._failed.get(query.request_id)
            raise AskFailed(f"{type(e).__name__}: {e.message}", trace.calls if trace else ()) from e
        finally:
            self._failed.pop(query.request_id, None)

    def _keep_failed(self, trace: Trace) -> None:
        if trace.error is not None:
            self._failed[trace.request_id] = trace


class HttpAsker:
    """An endpoint; `client` (from `r2_serve.client.new_client`) holds its URL and key."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._formless: set[str] = set()
        """Models that refuse a response format: endpoints take as a demand what is a hint for the router."""

    async def ask(self, query: Query) -> Asked:
        """A query that was refused because of its response format is sent once more without it."""
        has_hint = query.sampling.json_schema is not None
        if has_hint and query.model in self._formless:
            return await self._ask(_without_hint(query))
        try:
            return await self._ask(query)
        except AskFailed as e:
            if not has_hint or "response_format" not in str(e):
                raise
        self._formless.add(query.model)
        return await self._ask(_without_hint(query))

    async def _ask(self, query: Query) -> Asked:
        try:
            reply = await ask(self._client, chat_body(query), request_id=query.request_id)
        except RequestFailed as e:
            raise AskFailed(e.message, is_cost_known=e.is_unworked) from e
        if reply.r2 is None or reply.r2.trace is None:
            raise AskFailed("the endpoint is not R2: its reply has no trace", is_cost_known=False)
        return Asked(reply.text, reply.r2.confidence, reply.r2.trace)


def _without_hint(query: Query) -> Query:
    return query.model_copy(update={"sampling": query.sampling.model_copy(update={"json_schema": None})})
