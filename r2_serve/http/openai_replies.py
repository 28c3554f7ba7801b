"""What the replies of all dialects share: the field `r2`, our headers, and which error a client gets.

It holds the model lists too. Replies are written by `r2_serve.dialects`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from http import HTTPStatus

from starlette.exceptions import HTTPException

from r2_serve.dialects.wire import ErrorReply
from r2_serve.errors import R2Error
from r2_serve.router.backend import ModelListing
from r2_serve.types import Answer, Decision, Json, Trace

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
        "decision": _decision(trace.decision),
        "plan_fallback": trace.plan_fallback,
        "allocation_fallback": trace.allocation_fallback,
        "overhead_ms": round(answer.overhead_s * 1000, 3),
        "duration_ms": round(trace.duration_s * 1000, 3),
    }
    if trace.savings is not None:
        shown["savings"] = {"baseline": trace.savings.baseline, "saved_usd": f"{trace.savings.saved_usd:f}"}
    if gates := _gates(trace):
        shown["gates"] = gates
    if trace.session is not None:
        shown["session"] = trace.session.model_dump()
    if has_confidence:
        shown["confidence"] = answer.confidence
    return {**shown, "trace": trace.model_dump(mode="json")} if has_trace else shown


def _decision(decision: Decision | None) -> Json | None:
    """Whether the query was split and why, with the expected costs; None for a pool model."""
    if decision is None:
        return None
    shown = decision.model_dump(mode="json", exclude={"dropped_plan"}, exclude_none=True)
    return {name: f"{Decimal(v):f}" if name.endswith("_usd") else v for name, v in shown.items()}


def _gates(trace: Trace) -> list[Json]:
    """What each gate asked, accepted and escalated, and why."""
    return [
        {
            "step": result.id,
            **result.gate.model_dump(mode="json", exclude={"asked"}, exclude_none=True),
            "asked": [
                {**ask.model_dump(mode="json"), "cost_usd": f"{ask.cost_usd:f}"} for ask in result.gate.asked
            ],
        }
        for result in trace.results
        if result.gate is not None
    ]


def _gates_header(trace: Trace) -> dict[str, str]:
    """Each gate as `STEP=GATE; kept=MODEL; asked=COUNT; by=EVIDENCE`, which is `none` if nothing was
    accepted."""
    notes = [(result.id, result.gate) for result in trace.results if result.gate is not None]
    texts = (
        f"{step}={note.name}; kept={note.kept}; asked={note.num_asked}; by={note.evidence or 'none'}"
        for step, note in notes
    )
    return {"x-r2-gates": ", ".join(texts)} if notes else {}


def extra_headers(answer: Answer) -> dict[str, str]:
    """The main figures as headers of a plain reply; a stream sends its headers before it knows them."""
    session = answer.trace.session
    decision = answer.trace.decision
    savings = answer.trace.savings
    saved = {"x-r2-saved-usd": f"{savings.saved_usd:f}"} if savings else {}
    decided = {"x-r2-decision": f"{decision.action}; {decision.reason}"} if decision else {}
    return {
        **decided,
        "x-r2-cost-usd": f"{answer.cost_usd:f}",
        **saved,
        "x-r2-models": ",".join(answer.models),
        "x-r2-plan-nodes": str(answer.num_subtasks),
        "x-r2-overhead-ms": f"{answer.overhead_s * 1000:.3f}",
        **_gates_header(answer.trace),
        **({"x-r2-session": f"{session.state}; turn={session.turn}"} if session else {}),
    }


# -- models --


def model_object(listing: ModelListing, created: int, prices_as_of: str) -> Json:
    """A model as OpenAI lists it; its prices and abilities are in `r2`."""
    r2: Json = {"is_virtual": listing.is_virtual, "description": listing.description}
    r2["capabilities"] = sorted(listing.abilities)
    if listing.example:
        r2["example"] = listing.example
    if listing.gates:
        r2["gates"] = list(listing.gates)
    if (card := listing.card) is not None:
        r2 |= {
            "group": card.group,
            "context_tokens": card.context_tokens if card.has_known_context else None,
            "usd_per_mtok_in": f"{card.usd_per_mtok_in:f}",
            "usd_per_mtok_out": f"{card.usd_per_mtok_out:f}",
            "prices_as_of": prices_as_of,
        }
    return {"id": listing.id, "object": "model", "created": created, "owned_by": "r2", "r2": r2}


def model_list(models: Sequence[Json]) -> Json:
    return {"object": "list", "data": list(models)}


# -- errors --


def error_reply(error: Exception, request_id: str) -> ErrorReply:
    """What a client learns of `error`; an error that is not meant for clients shows the request id alone."""
    if isinstance(error, HTTPException):
        status, code = error.status_code, _CODES.get(error.status_code)
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        return ErrorReply(status, error.detail, kind, None, code, error.headers or {})
    if isinstance(error, R2Error) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        headers = _retry_headers(error)
        if error.cost_usd is not None:
            headers["x-r2-cost-usd"] = f"{error.cost_usd:f}"
        return ErrorReply(error.status, error.message, error.kind, error.param, error.code, headers)
    message = f"internal error; the server's log has more under request id {request_id}"
    return ErrorReply(500, message, "api_error", None, "internal_error")


def _retry_headers(error: R2Error) -> dict[str, str]:
    if error.is_lasting:
        return {"x-should-retry": "false"}  # the clients of OpenAI and Anthropic would retry any 429 and 5xx
    asked_s = getattr(error, "retry_after_s", None)
    if asked_s is None and error.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {}
    return {"retry-after": str(max(1, math.ceil(asked_s or 1)))}
