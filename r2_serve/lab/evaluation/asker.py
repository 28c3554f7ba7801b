"""Who answers a query during an evaluation: a router in this process, or an endpoint over HTTP.

A policy sees neither, only `Asker`: one query in, a reply with its trace out, or `AskFailed` with the calls it cost.
Over HTTP a failed request tells nothing of its calls, so its cost is marked as unknown, never as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from pydantic import ValidationError

from r2_serve.calls.pool import EngineFor
from r2_serve.config import RouterConfig, RoutingConfig
from r2_serve.errors import R2Error
from r2_serve.router.router import in_process
from r2_serve.types import CallRecord, Query, Trace


@dataclass(frozen=True)
class Asked:
    """What came back."""

    text: str
    confidence: float | None
    """As `Answer.confidence`, where the query's `sampling.logprobs` asked for it."""
    trace: Trace


class AskFailed(R2Error):
    """No answer; `calls` is what was spent on it, complete where `is_cost_known`."""

    def __init__(self, message: str, calls: tuple[CallRecord, ...] = (), is_cost_known: bool = True) -> None:
        Exception.__init__(self, message, calls, is_cost_known)
        self.message, self.calls, self.is_cost_known = message, calls, is_cost_known


class Asker(Protocol):
    """One query at a time, many at once."""

    async def ask(self, query: Query) -> Asked:
        """Raises: AskFailed."""
        ...


class InProcessAsker:
    """A router of this very process, its engines included."""

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
    """An endpoint; `client` (from `r2_serve.client.new_client`) knows where and with which key."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._formless: set[str] = set()
        """Models that refuse a response format, which of ours is a hint and of an endpoint's client a demand."""

    async def ask(self, query: Query) -> Asked:
        """Where a format is the reason to refuse, once more without."""
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
            response = await self._client.post(
                "chat/completions", json=_body(query), headers={"x-request-id": query.request_id}
            )
            body = response.json()
        except httpx.HTTPError as e:
            raise AskFailed(
                f"{type(e).__name__}: {e}", is_cost_known=isinstance(e, httpx.ConnectError)
            ) from e
        except ValueError as e:
            raise AskFailed(
                f"HTTP {response.status_code}, not JSON: {response.text[:200]!r}", is_cost_known=False
            ) from e
        try:
            if response.status_code != httpx.codes.OK:
                message = f"HTTP {response.status_code}: {body['error']['code']}: {body['error']['message']}"
                raise AskFailed(message, is_cost_known=response.status_code in _REFUSED_UNWORKED)
            trace = Trace.model_validate(body["r2"]["trace"])
            return Asked(body["choices"][0]["message"]["content"], body["r2"].get("confidence"), trace)
        except (KeyError, IndexError, TypeError, ValidationError) as e:
            raise AskFailed(
                f"HTTP {response.status_code}, but no reply of R2: {type(e).__name__}: {e}"[:300],
                is_cost_known=False,
            ) from e


_REFUSED_UNWORKED = {401, 404, 413, 415, 429}
"""Answered before any model is called."""


def _without_hint(query: Query) -> Query:
    return query.model_copy(update={"sampling": query.sampling.model_copy(update={"json_schema": None})})


def _body(query: Query) -> dict[str, Any]:
    """`query` in the wire's words; what is not set is left out."""
    sampling = query.sampling
    schema = {"name": "reply", "schema": sampling.json_schema}
    r2: dict[str, Any] = {
        "trace": True,
        "confidence": sampling.logprobs or None,
        "plan_only": query.is_plan_only or None,
        "policy": query.policy,
        "plan": query.plan.model_dump(mode="json", exclude_none=True) if query.plan else None,
        "models": {str(subtask): model for subtask, model in query.pinned.items()} or None,
        "max_cost_usd": None if query.max_cost_usd is None else f"{query.max_cost_usd:f}",
        "max_subtasks": query.max_subtasks,
        "deadline_s": query.deadline_s,
    }
    body: dict[str, Any] = {
        "model": query.model,
        "messages": [{"role": message.role, "content": message.content} for message in query.messages],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "response_format": None
        if sampling.json_schema is None
        else {"type": "json_schema", "json_schema": schema},
    }
    return {**_stated(body), "r2": _stated(r2)}


def _stated(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
