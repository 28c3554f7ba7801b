"""The replies of OpenAI's chat dialect: answers, stream chunks, model lists and errors as their exact JSON.

Replies have one key beyond OpenAI's own, `r2`; money in it is a decimal string. Requests:
`r2_serve.http.openai_wire`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.exceptions import HTTPException

from r2_serve.errors import QuotaExceeded, R2Error
from r2_serve.router.backend import ModelListing
from r2_serve.types import Answer, Json

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
    """Compact ASCII JSON on one line, so that no line separator in a text can split an event."""
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


# -- answers --


def extras(answer: Answer, prices_as_of: str, *, has_trace: bool, has_confidence: bool = False) -> Json:
    """The `r2` field of a reply."""
    trace = answer.trace
    shown: Json = {
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
    """The main figures as headers of a plain reply; a stream sends its headers before it knows them."""
    return {
        "x-r2-cost-usd": f"{answer.cost_usd:f}",
        "x-r2-models": ",".join(answer.models),
        "x-r2-plan-nodes": str(answer.num_subtasks),
        "x-r2-overhead-ms": f"{answer.overhead_s * 1000:.3f}",
    }


def _usage(answer: Answer) -> Json:
    """The usage of all calls. A pass-through's has the provider's details, which R2 does not interpret."""
    usage, reported = answer.usage, (answer.body or {}).get("usage")
    counts: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if isinstance(reported, dict):
        return {**reported, **counts}
    if usage.cached_read_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_read_tokens}
    if usage.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts


@dataclass(frozen=True)
class ReplyBuilder:
    """Makes the reply, or the chunks, of one completion. `model` is the name that the client gave."""

    id: str
    created: int
    model: str
    wants_usage_chunk: bool = False

    def completion(self, answer: Answer, r2: Json) -> bytes:
        if answer.body is not None:
            return encode({**answer.body, **self._head("chat.completion"), "usage": _usage(answer), "r2": r2})
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        head = self._head("chat.completion")
        return encode({**head, "choices": [choice], "usage": _usage(answer), "r2": r2})

    def role_chunk(self) -> bytes:
        return self.chunk(_piece({"role": "assistant", "content": "", "refusal": None}))

    def content_chunk(self, text: str) -> bytes:
        return self.chunk(_piece({"content": text}))

    def chunk(self, chunk: Json, r2: Json | None = None) -> bytes:
        """`chunk`, ours or a provider's, under our id and the client's name of the model."""
        usage: Json = {"usage": None} if self.wants_usage_chunk else {}
        return event({**self._head("chat.completion.chunk"), **chunk, **usage, **({"r2": r2} if r2 else {})})

    def last_chunks(self, answer: Answer, r2: Json, last: Json | None = None) -> bytes:
        """The finish reason, the usage if asked for, and the end; `r2` is in the last chunk.

        `last` is the provider's last chunk, if the reply passes as it came.
        """
        last = last or _piece({}, answer.finish_reason)
        if not self.wants_usage_chunk:
            return self.chunk(last, r2) + DONE
        usage = {"choices": [], "usage": _usage(answer), "r2": r2}
        return self.chunk(last) + event({**self._head("chat.completion.chunk"), **usage}) + DONE

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _piece(delta: Json, finish_reason: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"choices": [choice]}


# -- models --


def model_object(listing: ModelListing, created: int, prices_as_of: str) -> Json:
    """A model as OpenAI lists it; its prices and abilities are in `r2`."""
    r2: Json = {"is_virtual": listing.is_virtual, "description": listing.description}
    if (card := listing.card) is not None:
        r2 |= {
            "group": card.group,
            "context_tokens": card.context_tokens,
            "usd_per_mtok_in": f"{card.usd_per_mtok_in:f}",
            "usd_per_mtok_out": f"{card.usd_per_mtok_out:f}",
            "prices_as_of": prices_as_of,
        }
    return {"id": listing.id, "object": "model", "created": created, "owned_by": "r2", "r2": r2}


def model_list(listings: Sequence[ModelListing], created: int, prices_as_of: str) -> Json:
    return {"object": "list", "data": [model_object(listing, created, prices_as_of) for listing in listings]}


# -- errors --


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
    def body(self) -> Json:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def error_reply(error: Exception, request_id: str) -> ErrorReply:
    """What a client learns of `error`; an error that is not meant for clients shows the request id alone."""
    if isinstance(error, HTTPException):
        status, code = error.status_code, _CODES.get(error.status_code)
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        return ErrorReply(status, error.detail, kind, None, code, error.headers or {})
    if isinstance(error, R2Error) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        param = getattr(error, "param", None)
        return ErrorReply(error.status, error.message, error.kind, param, error.code, _retry_after(error))
    message = f"internal error; the server's log has more under request id {request_id}"
    return ErrorReply(500, message, "api_error", None, "internal_error")


def _retry_after(error: R2Error) -> dict[str, str]:
    if isinstance(error, QuotaExceeded):
        return {"x-should-retry": "false"}  # OpenAI's own clients would retry after any other 429
    if error.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {}
    return {"retry-after": str(max(1, math.ceil(getattr(error, "retry_after_s", None) or 1)))}
