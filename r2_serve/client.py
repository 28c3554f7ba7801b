"""The one client of an OpenAI-compatible endpoint: request bodies, replies and the list of models.

Evaluations and the demo ask R2's own endpoint with it; the load generator also asks other endpoints. It uses
httpx instead of the openai package because that one retries by itself and does more work for each request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from r2_serve.engines.chat_parts import ChatCompletion, Chunk, Tokens, first_fault, is_finished
from r2_serve.engines.events import DONE, IGNORED_EVENTS, EventReader, EventStreamError
from r2_serve.errors import R2Error
from r2_serve.types import Event, GateSpec, Query, Trace

UNWORKED_STATUSES = frozenset({401, 404, 413, 415, 429})
"""R2 answers with these before any model is called."""
MAX_SHOWN_CHARS = 500
"""How much of a reply an error quotes."""
Parsed = TypeVar("Parsed", bound=BaseModel)


class RequestFailed(R2Error):
    """The endpoint gave no answer. The message is `KIND: text`; the same sort of failure has the same KIND.

    `http_status` is None if no reply came. `is_unworked` says that surely no model was called.
    """

    def __init__(self, message: str, http_status: int | None = None, is_unworked: bool = False) -> None:
        Exception.__init__(self, message, http_status, is_unworked)
        self.message, self.http_status, self.is_unworked = message, http_status, is_unworked


class ReplyExtras(BaseModel):
    """`r2` of a reply; endpoints other than R2's have none."""

    cost_usd: Decimal | None = None
    subtasks: int | None = None
    confidence: float | None = None
    trace: Trace | None = None
    event: Event | None = None
    """What just happened to the query; in a stream that was asked for events."""


@dataclass(frozen=True)
class ChatReply:
    """A reply, or one piece of a streamed reply."""

    text: str
    usage: Tokens | None
    r2: ReplyExtras | None
    is_finished: bool = True
    """Whether the reply ends here."""


class _Completion(ChatCompletion):
    r2: Annotated[ReplyExtras | None, Field(strict=False)] = None


class _Chunk(Chunk):
    r2: Annotated[ReplyExtras | None, Field(strict=False)] = None


class _Error(BaseModel):
    message: str
    code: str | int | None = None
    type: str | None = None


class _ErrorBody(BaseModel):
    error: _Error


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


def new_client(
    base_url: str, *, timeout_s: float = 300.0, api_key: str | None = None, max_open: int = 100
) -> httpx.AsyncClient:
    """A client of the endpoint at `base_url`, with room for `max_open` requests at once."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=max_open, max_keepalive_connections=max_open)
    url = endpoint_url(base_url)
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=timeout_s, trust_env=False)


def endpoint_url(text: str) -> str:
    """The URL of an endpoint: `http://` where `text` names no protocol, `/v1/` where it names no path."""
    url = text.rstrip("/") if "://" in text else f"http://{text.rstrip('/')}"
    has_path = "/" in url.partition("://")[2]
    return f"{url}/" if has_path else f"{url}/v1/"


def question(model: str, text: str, **fields: object) -> Query:
    """A query of one user message; `fields` are fields of `Query`."""
    message = {"role": "user", "content": text}
    return Query.model_validate({"request_id": "", "model": model, "messages": (message,), **fields})


def chat_body(
    query: Query, *, is_streamed: bool = False, has_trace: bool = True, has_events: bool = False
) -> dict[str, object]:
    """The request body of `query`, without what it leaves open. With `has_trace` or `has_events` only R2
    takes it."""
    sampling, r2 = query.sampling, _extras_of(query)
    if has_events:
        r2 = {**r2, "events": True}
    schema = {"name": "reply", "schema": sampling.json_schema}
    body: dict[str, object] = {
        "model": query.model,
        "messages": [message.wire for message in query.messages],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "response_format": {"type": "json_schema", "json_schema": schema} if sampling.json_schema else None,
        "stream": is_streamed or None,
        "stream_options": {"include_usage": True} if is_streamed else None,
        "r2": {**r2, "trace": True} if has_trace else r2 or None,
        **sampling.forwarded,
    }
    return _stated(body)


async def ask(http: httpx.AsyncClient, body: dict[str, object], *, request_id: str = "") -> ChatReply:
    """One whole reply. Raises: RequestFailed."""
    headers = {"x-request-id": request_id} if request_id else {}
    with _failures():
        response = await http.post("chat/completions", json=body, headers=headers)
        _check_status(response)
        reply = _read(_Completion, response.content, response.status_code)
        return ChatReply(reply.choices[0].message.content or "", reply.tokens, reply.r2)


async def ask_streamed(http: httpx.AsyncClient, body: dict[str, object]) -> AsyncGenerator[ChatReply, None]:
    """The pieces of a streamed reply as they come.

    Raises: RequestFailed, also if the stream ends with neither `[DONE]` nor a finish reason.
    """
    has_ended = False
    with _failures():
        async with http.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            _check_status(response)
            async for event in _events(response):
                if event.strip() == DONE:
                    return
                piece = _piece(event, response.status_code)
                has_ended |= piece.is_finished
                yield piece
    if not has_ended:
        raise RequestFailed("cut off: the stream ended without [DONE] or a finish reason", httpx.codes.OK)


async def list_models(http: httpx.AsyncClient, *, timeout_s: float = 30.0) -> list[str]:
    """The names that the endpoint lists. Raises: RequestFailed."""
    with _failures():
        response = await http.get("models", timeout=timeout_s)
        _check_status(response)
        return [model.id for model in _read(_Models, response.content, response.status_code).data]


def _stated(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _extras_of(query: Query) -> dict[str, object]:
    return _stated(
        {
            "confidence": query.sampling.logprobs or None,
            "plan_only": query.is_plan_only or None,
            "policy": query.policy,
            "gate": query.gate.model_dump(mode="json") if isinstance(query.gate, GateSpec) else query.gate,
            "plan": query.plan.model_dump(mode="json", exclude_none=True) if query.plan else None,
            "models": {str(subtask): model for subtask, model in query.pinned.items()} or None,
            "max_cost_usd": None if query.max_cost_usd is None else f"{query.max_cost_usd:f}",
            "max_subtasks": query.max_subtasks,
            "deadline_s": query.deadline_s,
            "priority": query.priority if query.priority != "user" else None,
        }
    )


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    reader = EventReader()
    async for chunk in response.aiter_bytes():
        for event in reader.feed(chunk):
            yield event


def _piece(event: str, status: int) -> ChatReply:
    """One event of a stream; an empty one, `null` and a chunk with usage alone hold no text."""
    if event.strip() in IGNORED_EVENTS:
        return ChatReply("", None, None, is_finished=False)
    chunk = _read(_Chunk, event, status)
    if chunk.error:
        raise _failed(status, event)
    if not chunk.model_fields_set & {"choices", "usage"}:
        raise RequestFailed("not a chat completion: an event has neither choices nor usage", status)
    if not chunk.choices:
        return ChatReply("", chunk.tokens, chunk.r2, is_finished=False)
    choice = chunk.choices[0]
    if choice.delta is None and "delta" in choice.model_fields_set:
        raise RequestFailed("not a chat completion: choices.0.delta is null", status)
    text = choice.delta.content if choice.delta else None
    return ChatReply(text or "", chunk.tokens, chunk.r2, is_finished(choice.finish_reason))


def _check_status(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        raise _failed(response.status_code, response.content)


def _failed(status: int, content: bytes | str) -> RequestFailed:
    try:
        error = _ErrorBody.model_validate_json(content).error
        kind, text = f"{status} {error.code or error.type or ''}".rstrip(), error.message[:MAX_SHOWN_CHARS]
    except ValidationError:
        kind, text = str(status), repr(content[:MAX_SHOWN_CHARS])
    return RequestFailed(f"{kind}: {text}", status, status in UNWORKED_STATUSES)


def _read(kind: type[Parsed], content: bytes | str, status: int) -> Parsed:
    try:
        return kind.model_validate_json(content)
    except ValidationError as e:
        raise RequestFailed(f"not a chat completion: {first_fault(e)}", status) from e


@contextmanager
def _failures() -> Iterator[None]:
    """Turns what goes wrong on the way into `RequestFailed`."""
    try:
        yield
    except httpx.HTTPError as e:
        is_unworked = isinstance(e, httpx.ConnectError)
        raise RequestFailed(f"{type(e).__name__}: {e}", is_unworked=is_unworked) from e
    except EventStreamError as e:
        raise RequestFailed(f"not a chat completion: {e}", httpx.codes.OK) from e
