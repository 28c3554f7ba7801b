"""The errors of providers: what each means, and what of it a client may read. Pure functions of bytes.

Four questions decide. Is the router's operator at fault (key, account, model, address)? Is the prompt too
long for the model? Did a content policy refuse it? Else the status decides. Wordings come from the
documentation and the servers of OpenAI, Azure, Anthropic, DeepSeek, Qwen (DashScope), Gemini, Mistral,
Together, vLLM, SGLang, llama.cpp, Ollama, LM Studio, xAI, Groq, Moonshot, MiniMax and Bedrock.

Errors quote the provider in full: the engine that made the call redacts and shortens them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from r2_serve.errors import (
    ContextOverflow,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
    OperatorFault,
)

MAX_NAME_CHARS = 100
"""Longest type, code or param that is passed on."""
RETRIABLE_STATUSES = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same call may succeed. All of 5xx are retriable too."""
KEPT_STATUSES = frozenset({502, 503, 504})
"""Statuses from 500 on that reach the client as they are; the others become 503."""
QUOTA_ERRORS = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "exceeded_current_quota_error"}
    | {"arrearage", "insufficient_balance", "billing_error", "credit_balance_exhausted"}
)
"""Codes and types of errors that do not pass by waiting, although their status may be 429."""
_POLICY_ERRORS = frozenset(
    {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"}
    | {"datainspectionfailed", "moderation_blocked", "sensitive_content", "cyber_policy"}
)
_OVERFLOW_ERRORS = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "model_max_prompt_tokens_exceeded"}
    | {"context_window_exceeded", "model_context_window_exceeded"}
)
_MODEL_ERRORS = frozenset({"model_not_found", "invalid_model", "deploymentnotfound", "model_not_supported"})
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "api_error": 500,
    "internal_server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that the type of an error inside a 200 stands for."""


def _any_of(*wordings: str) -> re.Pattern[str]:
    return re.compile("|".join(wordings), re.IGNORECASE | re.DOTALL)


_OVERFLOW = _any_of(
    r"maximum (context|model|prompt) length",
    r"max(imum)?[ _](context|model)[ _]length",
    r"context[ _]length[ _]exceeded",
    r"(exceeds?|exceeded|exceeding|larger than|longer than|greater than|beyond) "
    r"(the )?(model'?s? )?(maximum |available |allowed |max )?(context|prompt) ?(length|window|size|limit)",
    r"context (length|window|size|limit)( of \d+)?( tokens)?( has been)? (exceed|overflow)",
    r"context window exceeds limit",
    r"context length is only",
    r"context of \d+ leaves none",
    r"(prompt|input|request) (is )?too long(?! to process in time)",
    r"prompt exceeds (the |max )?(max(imum)? )?(length|context)",
    r"prompt token count of \d+ exceeds the limit",
    r"input token count.{0,40}exceeds the maximum",
    r"exceeds? the maximum number of (input )?tokens",
    r"exceeded model token limit",
    r"range of input length should be",
    r"(token|input|message) length exceeds? (the )?(model|max)",
    r"total length of input and max_tokens",
    r"too large for model with \d+ maximum context",
    r"`?inputs`? (tokens|must have less than)",
    r"tokens to keep from the initial prompt is greater than the context",
    r"reduce the length of (the |your )?(messages|prompt|input)",
    r"too many (input |total )?tokens in (the )?(prompt|input|request)",
    r"total number of tokens in the prompt cannot exceed",
)
_RATE_LIMIT = _any_of(r"tokens per (min|hour|day)", r"\bTPM\b", r"\bRPM\b", r"rate[ _]limit")
_KEY_FAULT = _any_of(
    r"(incorrect|invalid|missing|expired|no) api[ _-]?key",
    r"api[ _-]?key (is )?(not valid|invalid|expired|missing|incorrect)",
    r"authentication fails",
)
_ACCOUNT_FAULT = _any_of(
    r"credit balance is too low",
    r"insufficient (balance|credits?|funds)",
    r"account is in good standing",
)
_MODEL_FAULT = _any_of(
    r"model[ _]not[ _](exist|found)",
    r"(model|deployment)\b.{0,120}(does not exist|not exist|not found|no longer available)",
    r"invalid model\b",
    r"unknown model\b",
)
_POLICY = _any_of(
    r"content (management )?(policy|filter)",
    r"content (is )?(blocked|exists risk)",
    r"(safety|moderation|usage policy) (system|violation|policy)",
    r"data inspection|inappropriate content|prohibited content|requires moderation|flagged",
    r"sensitive (content|words?)",
)
E = TypeVar("E", bound=EngineError)


def failure_from_status(status: int, headers: Mapping[str, str], content: bytes) -> EngineError:
    """The error that an HTTP status other than 2xx stands for."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    failure = failure_from_body(status, body)
    if isinstance(failure, EngineUnavailable):
        failure.retry_after_s = asked_wait_s(headers)
        failure.args = (failure.message, failure.retry_after_s)
    return failure


def failure_from_body(status: int | None, body: object) -> EngineError:
    """The error that `body` describes. `status` is None if an error inside a 200 names none."""
    report = _Report.of(body)
    status = status or report.status
    if report.has(QUOTA_ERRORS) or report.says(_ACCOUNT_FAULT):
        return _operator_fault(status or 402, report)
    if status is None:
        return InvalidReply(f"the provider sent an error in place of a reply{report.quoted}")
    if status in (400, 403, 422, 451) and report.is_policy_refusal:
        return report.put_into(EngineRefused(report.text_for(status)), 400, code="content_filter")
    if status in (400, 413, 422, 500) and report.is_overflow:
        return report.put_into(ContextOverflow(report.text_for(status)), 400, code=ContextOverflow.code)
    if status in RETRIABLE_STATUSES or status >= 500:
        return _passing_failure(status, report)
    if report.is_operator_fault(status):
        return _operator_fault(status, report)
    return report.put_into(EngineRefused(report.text_for(status)), status)


def is_context_overflow(text: str) -> bool:
    """Whether a server's words say that the prompt, or prompt and reply, are longer than the context."""
    return _OVERFLOW.search(text) is not None and _RATE_LIMIT.search(text) is None


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the provider wants to be asked again; None if it does not say."""
    try:
        wait_s = float(headers.get("retry-after-ms", "")) / 1000
    except ValueError:
        return retry_after_s(headers.get("retry-after"), headers.get("date"))
    return max(wait_s, 0.0) if math.isfinite(wait_s) else None


def retry_after_s(value: str | None, sent: str | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or an HTTP date; None if it says nothing usable.

    A date counts from `sent`, the reply's own Date header, if there is one: our clock may be wrong.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until = _date(value)
        if until is None:
            return None
        seconds = (until - (_date(sent or "") or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@dataclass(frozen=True)
class _Report:
    """What an error's body says, found in every shape that providers are known to send."""

    message: str | None
    kind: str | None = None
    code: str | None = None
    param: str | None = None
    more: str = ""
    """Other words of the body: the error of the provider behind a gateway, the reason of a filter."""

    @classmethod
    def of(cls, body: object) -> _Report:
        body = body[0] if isinstance(body, list) and body else body
        fields = body if isinstance(body, dict) else {}
        error = fields.get("error") or body
        if not isinstance(error, dict):
            return cls(error if isinstance(error, str) else None, _name(fields.get("type")))
        message = error.get("message") or error.get("detail") or error.get("error")
        if message and not isinstance(message, str):
            message = json.dumps(message)
        return cls(
            message or None,
            _name(error.get("type")),
            _name(error.get("code")) or _name(error.get("status")),
            _name(error.get("param")),
            json.dumps({key: error[key] for key in ("metadata", "innererror", "status") if key in error}),
        )

    @property
    def status(self) -> int | None:
        """The HTTP status that the body itself names, by its code or its type."""
        if re.fullmatch("[45][0-9]{2}", self.code or ""):
            return int(self.code or "")
        named = (_STATUS_OF_TYPE.get((name or "").lower()) for name in (self.kind, self.code))
        return next(filter(None, named), None)

    @property
    def quoted(self) -> str:
        return f": {self.message}" if self.message else ""

    @property
    def is_overflow(self) -> bool:
        return self.has(_OVERFLOW_ERRORS) or is_context_overflow(f"{self.message} {self.more}")

    @property
    def is_policy_refusal(self) -> bool:
        return self.has(_POLICY_ERRORS) or self.says(_POLICY)

    def is_operator_fault(self, status: int) -> bool:
        """Whether a refusal is about the key, the address or the model, which the operator chose."""
        if status == 404:
            return self.param in (None, "model")
        is_about_model = self.param in (None, "model") and self.says(_MODEL_FAULT)
        is_about_key = status in (401, 402, 403, 405, 407) or self.says(_KEY_FAULT)
        return status < 400 or is_about_key or is_about_model or self.has(_MODEL_ERRORS)

    def has(self, names: Iterable[str]) -> bool:
        return not {(name or "").lower() for name in (self.kind, self.code)}.isdisjoint(names)

    def says(self, wording: re.Pattern[str]) -> bool:
        return wording.search(f"{self.message} {self.more}") is not None

    def put_into(
        self, error: E, status: int, *, kind: str = "invalid_request_error", code: str | None = None
    ) -> E:
        """`error` under `status`, with the type, code and param that the provider names, or else ours.

        A code that is a number is not passed on: OpenAI's are words.
        """
        is_word = self.code is not None and not self.code.isdecimal()
        is_ours = code in ("content_filter", ContextOverflow.code)
        error.status, error.kind, error.param = status, self.kind or kind, self.param
        error.code = self.code if is_word and not is_ours else code
        return error

    def text_for(self, status: int) -> str:
        """The provider's own words, or if it sent none, its status."""
        return self.message or f"the provider answered {status}"


def _name(value: object) -> str | None:
    """A type, code or param, which some providers send as a number or a path."""
    if isinstance(value, list):
        value = ".".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()[:MAX_NAME_CHARS] or None


def _passing_failure(status: int, report: _Report) -> EngineError:
    """A failure that may pass by itself. The client gets 429 and some of 5xx as they are, the others as 503,
    because a 408 or 409 of ours would speak of its own request, and a 500 of a fault of the router."""
    if status == 429:
        limited, kind = NotStarted(report.text_for(status)), "rate_limit_error"
        return report.put_into(limited, status, kind=kind, code="rate_limit_exceeded")
    error = (NotStarted if status < 500 else EngineUnavailable)(
        f"the provider answered {status}{report.quoted}"
    )
    shown = status if status in KEPT_STATUSES else 503
    return report.put_into(error, shown, kind="api_error", code=error.code)


def _operator_fault(status: int, report: _Report) -> OperatorFault:
    return OperatorFault(
        f"the provider refuses this router (status {status}){report.quoted.rstrip('.')}; "
        "its operator must check key, account, address and model name"
    )


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)
