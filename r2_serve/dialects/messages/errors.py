"""Errors in Anthropic's words. Source: https://docs.anthropic.com/en/api/errors."""

from __future__ import annotations

from r2_serve.dialects.wire import ErrorReply
from r2_serve.types import Json

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(error: ErrorReply, request_id: str) -> Json:
    """An error in Anthropic's shape; `param` and `code` are ours."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    more = {"param": error.param, "code": error.code}
    said = {name: value for name, value in more.items() if value is not None}
    fields = {"type": kind, "message": error.message, **said}
    return {"type": "error", "error": fields, "request_id": request_id}
