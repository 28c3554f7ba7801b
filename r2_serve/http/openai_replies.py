"""The OpenAI chat dialect, replies: answers, stream chunks, model lists and errors as their exact JSON.

Requests are `r2_serve.http.openai_wire`. Beyond OpenAI's own keys there is one, `r2`; money in it is a decimal string.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from r2_serve.errors import QuotaExceeded, R2Error
from r2_serve.router.backend import ModelListing
from r2_serve.types import Answer, Usage

Json = Mapping[str, Any]
DONE = b"data: [DONE]\n\n"
_CODES = {
    401: "invalid_api_key",
    403: "insufficient_permissions",
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    503: "not_ready",
}


def encode(value: Json) -> bytes:
    """Compact ASCII JSON on one line: a line separator in a text cannot split an event."""
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


# -- answers ------------------------------------------------------------------------------------------------------


def extras(
    answer: Answer, prices_as_of: str, *, has_trace: bool, has_confidence: bool = False
) -> dict[str, Any]:
    """The `r2` field of a reply."""
    trace = answer.trace
    shown: dict[str, Any] = {
        "cost_usd": f"{answer.cost_usd:f}",
        "worker_cost_usd": f"{trace.worker_cost_usd:f}",
        "prices_as_of": prices_as_of,
        "models": list(answer.models),
        "subtasks": answer.num_subtasks,
        "policy": trace.policy,
        "plan_fallback": trace.plan_fallback,
        "allocation_fallback": trace.allocation_fallback,
        "overhead_ms": round(answer.overhead_s * 1000, 3),
        "duration_ms": round(trace.duration_s * 1000, 3),
    }
    if has_confidence:
        shown["confidence"] = answer.confidence
    return {**shown, "trace": trace.model_dump(mode="json")} if has_trace else shown


def extra_headers(answer: Answer) -> dict[str, str]:
    """The same in headers, for plain replies: a stream's are sent before any of it is known."""
    return {
        "x-r2-cost-usd": f"{answer.cost_usd:f}",
        "x-r2-models": ",".join(answer.models),
        "x-r2-plan-nodes": str(answer.num_subtasks),
        "x-r2-overhead-ms": f"{answer.overhead_s * 1000:.3f}",
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


@dataclass(frozen=True)
class ReplyBuilder:
    """Makes the reply, or the chunks, of one completion. `model` is as the client named it."""

    id: str
    created: int
    model: str
    wants_usage_chunk: bool = False

    def completion(self, answer: Answer, r2: Json) -> bytes:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return encode(
            {**self._head("chat.completion"), "choices": [choice], "usage": _usage(answer.usage), "r2": r2}
        )

    def role_chunk(self) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def content_chunk(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def last_chunks(self, answer: Answer, r2: Json) -> bytes:
        """The one finish reason, the usage where asked, and the end; `r2` is in the last chunk."""
        if not self.wants_usage_chunk:
            return self._chunk({}, answer.finish_reason, {"r2": r2}) + DONE
        usage = {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": _usage(answer.usage),
            "r2": r2,
        }
        return self._chunk({}, answer.finish_reason) + event(usage) + DONE

    def _chunk(self, delta: Json, finish_reason: str | None = None, more: Json | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self.wants_usage_chunk else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage, **(more or {})})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


# -- models -------------------------------------------------------------------------------------------------------


def model_object(listing: ModelListing, created: int, prices_as_of: str) -> dict[str, Any]:
    """A model as OpenAI lists it; what it costs and can do is in `r2`."""
    r2: dict[str, Any] = {"is_virtual": listing.is_virtual, "description": listing.description}
    if listing.card is not None:
        card = listing.card
        prices = {
            "usd_per_mtok_in": f"{card.usd_per_mtok_in:f}",
            "usd_per_mtok_out": f"{card.usd_per_mtok_out:f}",
        }
        r2 |= {
            "group": card.group,
            "context_tokens": card.context_tokens,
            **prices,
            "prices_as_of": prices_as_of,
        }
    return {"id": listing.id, "object": "model", "created": created, "owned_by": "r2", "r2": r2}


def model_list(listings: Sequence[ModelListing], created: int, prices_as_of: str) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(listing, created, prices_as_of) for listing in listings]}


# -- errors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorReply:
    """An error as the client gets it."""

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def error_reply(error: Exception, request_id: str) -> ErrorReply:
    """What a client is told of `error`: nothing of it where it is not meant for clients."""
    if isinstance(error, HTTPException):
        kind = (
            "invalid_request_error" if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        )
        return ErrorReply(
            error.status_code,
            error.detail,
            kind,
            code=_CODES.get(error.status_code),
            headers=error.headers or {},
        )
    if isinstance(error, R2Error) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        return ErrorReply(
            error.status,
            error.message,
            error.kind,
            getattr(error, "param", None),
            error.code,
            _retry_after(error),
        )
    return ErrorReply(
        500,
        f"internal error; the server's log has more under request id {request_id}",
        "api_error",
        code="internal_error",
    )


def _retry_after(error: R2Error) -> dict[str, str]:
    if isinstance(error, QuotaExceeded):
        return {
            "x-should-retry": "false"
        }  # read by OpenAI's own clients, which would try again after any other 429
    if error.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {}
    return {"retry-after": str(max(1, math.ceil(getattr(error, "retry_after_s", None) or 1)))}
