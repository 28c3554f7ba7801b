"""Every error the router raises, one type per boundary, wrapped once (`raise ... from e`).

    R2Error
    |-- ConfigError            the configuration is wrong; says which key
    |-- PublishError           the running cluster did not take an adapter; says what is in force
    |-- ServeApiError          Ray Serve's REST interface or controller refused, failed or did not answer
    |-- InvalidRequest         400   the client's request is wrong; `param` names the field
    |   |-- ModelNotFound      404
    |   |-- ResponseNotFound   404
    |   `-- QueryNotFound      404
    |-- FeedbackLost           503   a rating cannot be written at present
    |-- NotAllowed             403   the client's key may not ask for that model
    |-- BudgetExceeded         400   the request's own limit (cost, calls, tokens) would be overspent
    |   `-- QuotaExceeded      429   the client key's budget would be
    |-- DeadlineExceeded       504
    |-- Overloaded             429   bounded queue is full; `retry_after_s`
    |   `-- Stopping           503   the server takes no new requests, as it is about to stop
    |-- PoisonousRequest       422   each replica that worked on it died; clients should not send it again
    |-- SubtaskFailed          502   a subtask failed on its model and on every fallback
    |-- CodecError                   a model's reply is not a plan or an allocation (handled: fallback)
    `-- EngineError            502   a model call failed
        |-- EngineUnavailable  503   broken connection, 5xx: may be retried; what it cost is not known
        |   |-- NotStarted           no connection, 408/409/429: may be retried; costs nothing
        |   |-- EngineTimeout        no whole reply in time: not retried on the same model
        |   |-- ReplicaDied          the replica at work on the call died: may be retried, once
        |   `-- EngineDied           the engine in this process is dead for good; its replica ends itself
        |-- ReplyCut                 a reply that others build on was cut at its limit, twice
        |-- InvalidReply             the model or provider answered nonsense: may be retried
        `-- EngineRefused      400   this model does not take the request: not retried; costs nothing
            |-- ContextOverflow      the prompt, or prompt and reply, are longer than the model's context
            |-- OperatorFault  502   the provider refuses the router's key, account, address or model
            `-- AnswerWithheld 502   a tool call in place of text; it is billed
                `-- AnswerFiltered   a filtered reply or the model's refusal; it is billed

An error of a provider keeps the provider's own status, type, code and param, as far as a client may act on
them (`r2_serve.engines.provider_errors`): they are set on the instance, and pickled with it.

Positional arguments equal `args`, so each one pickles across Ray unchanged (keyword-only arguments would
arrive as `UnserializableException`); `tests/test_errors.py` checks every class.
"""

from __future__ import annotations

import asyncio
import traceback
from copy import copy
from decimal import Decimal
from pathlib import PurePath
from typing import Self

from r2_serve.types import Usage


def places(error: BaseException) -> str:
    """The lines that `error` passed, innermost first, for logs: its message may quote users."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " < ".join(
        f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )


class R2Error(Exception):
    """Root. `status` is the HTTP status, `code` OpenAI's `error.code`, `kind` OpenAI's `error.type`."""

    status = 500
    kind = "api_error"
    code: str | None = None
    param: str | None = None
    """The field of the request at fault."""
    cost_usd: Decimal | None = None
    """What the calls of the failed query cost; None where none was made."""
    is_lasting = False
    """Whether the same request would fail again although clients retry after such a status."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(R2Error):
    """The configuration is wrong."""


class BookError(R2Error):
    """A file is no book of outcomes and no fitted policy, or a book lacks what a command needs. The message
    names the file and the line."""


class PublishError(R2Error):
    """The running cluster did not take an adapter or a routing; says what is in force now."""


class ServeApiError(R2Error):
    """Ray Serve's REST interface or controller refused, failed or did not answer."""


class InvalidRequest(R2Error):
    """The client's request is wrong; `param` names the field at fault."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        Exception.__init__(self, message, param, code)
        self.message, self.param = message, param
        if code is not None:
            self.code = code


class ModelNotFound(InvalidRequest):
    """The `model` of a request is neither virtual nor in the pool."""

    status = 404

    def __init__(
        self, message: str, param: str | None = "model", code: str | None = "model_not_found"
    ) -> None:
        super().__init__(message, param, code)


class ResponseNotFound(InvalidRequest):
    """A response that the client names is not kept, or another key made it."""

    status = 404
    code = "response_not_found"


class QueryNotFound(InvalidRequest):
    """A query that the client rates is not known, or another key asked it."""

    status = 404
    code = "query_not_found"


class FeedbackLost(R2Error):
    """A rating cannot be written at present."""

    status = 503
    code = "feedback_not_written"


class NotAllowed(R2Error):
    """The client's key may not ask for that model. Type and code are OpenAI's own for it."""

    status = 403
    kind = "invalid_request_error"
    code = "model_not_found"
    param: str | None = "model"


class BudgetExceeded(R2Error):
    """Starting the next call could overspend the request's own limit, so it was not started."""

    status = 400
    kind = "invalid_request_error"
    code = "budget_exceeded"


class QuotaExceeded(BudgetExceeded):
    """The next call could overspend the budget of the client's key. To retry does not help."""

    status = 429
    kind = "insufficient_quota"
    code = "insufficient_quota"
    is_lasting = True


class DeadlineExceeded(R2Error):
    """The request's one deadline passed."""

    status = 504
    kind = "timeout_error"
    code = "deadline_exceeded"


class Overloaded(R2Error):
    """The request was refused before any work, as the queue is full."""

    status = 429
    kind = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        Exception.__init__(self, message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s


class Stopping(Overloaded):
    """The request was refused, as the server stops once the requests at work are answered."""

    status = 503
    kind = "api_error"
    code = "stopping"


class PoisonousRequest(R2Error):
    """One of the request's calls was at work on several replicas when they died; it is not sent to another.

    The status is not 5xx, as client libraries send such requests again by themselves.
    """

    status = 422
    kind = "invalid_request_error"
    code = "poisonous_request"


class SubtaskFailed(R2Error):
    """Subtask `subtask` failed on `model` and on every fallback."""

    status = 502
    code: str | None = "subtask_failed"
    retry_after_s: float | None = None

    def __init__(self, message: str, subtask: int, model: str) -> None:
        Exception.__init__(self, message, subtask, model)
        self.message, self.subtask, self.model = message, subtask, model

    @classmethod
    def by(
        cls, error: EngineError, subtask: int, model: str, *, is_final: bool, is_only: bool = False
    ) -> Self:
        """The failure of `subtask` by `error`, of the kind that tells the client what to do.

        The only step of a query (`is_only`) is no plan to the client, who reads the provider's words alone.

        A rate limit, a prompt that is too long and a content policy stay what they are. Every other refusal
        is the client's to mend only in the final step (`is_final`), which has its parameters. In an inner
        step, another try would pay for the plan again and fail again, so clients are asked not to make it.
        """
        where = "" if is_only else f"subtask {subtask} failed on {model} and its fallbacks: "
        message = where + error.message
        failed = cls(message, subtask, model)
        is_refusal, is_operators = isinstance(error, EngineRefused), isinstance(error, OperatorFault)
        is_told = is_operators or error.code in (ContextOverflow.code, "content_filter")
        if not is_refusal or is_final or is_told:
            failed.status, failed.kind, failed.param = error.status, error.kind, error.param
            failed.code = error.code if error.status < 500 or is_operators else cls.code
        failed.is_lasting = is_refusal and failed.status >= 500
        failed.retry_after_s = getattr(error, "retry_after_s", None)
        return failed


class CodecError(R2Error):
    """A reply could not be parsed as a plan or an allocation. `reason` is a short slug for traces."""

    def __init__(self, message: str, reason: str = "unparsable") -> None:
        Exception.__init__(self, message, reason)
        self.message, self.reason = message, reason


class EngineError(R2Error):
    """A model call failed."""

    status = 502
    code: str | None = "upstream_error"
    usage: Usage | None = None
    """Usage that the provider reported with the error; it is billed."""
    is_free = False
    """Whether the call was refused before any work, so that it costs nothing unless usage is reported."""

    def reworded(self, message: str) -> Self:
        """The same error with another message, without traceback or cause."""
        changed = copy(self)
        changed.message, changed.args = message, (message, *self.args[1:])
        return changed

    def name_model(self, model: str) -> None:
        """Put the model in front, as a virtual model has several. What is the client's fault stays as it is:
        there the words are the provider's."""
        if self.status >= 500 and model not in self.message:
            self.message = f"{model}: {self.message}"
            self.args = (self.message, *self.args[1:])


class EngineUnavailable(EngineError):
    """A broken connection, a timeout, 5xx or a dead replica: the call may succeed later."""

    status = 503
    code = "upstream_unavailable"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        Exception.__init__(self, message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s


class NotStarted(EngineUnavailable):
    """No connection (refused, DNS, TLS) or 408/409/429: the model did no work, and may be asked again."""

    is_free = True


class EngineTimeout(EngineUnavailable):
    """The reply was not whole within the call's timeout. Another model may be faster."""


class ReplicaDied(EngineUnavailable):
    """The replica at work on the call died.

    `lost` names it, or the node that took it along: many calls may report the same death. `is_suspicious`:
    the call itself may be the cause.
    """

    def __init__(
        self,
        message: str,
        retry_after_s: float | None = None,
        lost: str = "",
        is_suspicious: bool = True,
    ) -> None:
        Exception.__init__(self, message, retry_after_s, lost, is_suspicious)
        self.message, self.retry_after_s = message, retry_after_s
        self.lost, self.is_suspicious = lost, is_suspicious


class EngineDied(EngineUnavailable):
    """The engine's own process is dead, and only a new start of the engine helps."""


class InvalidReply(EngineError):
    """The reply breaks the protocol (no choices, cut JSON, an HTML page, a truncated stream)."""

    code = "invalid_upstream_reply"


class ReplyCut(EngineError):
    """The reply was cut at its limit, a second one with more room too, so nothing may be built on it."""

    code = "reply_cut"


class EngineRefused(EngineError):
    """The model or its provider does not take this request (4xx), and did no work."""

    status = 400
    kind = "invalid_request_error"
    code = "upstream_refused"
    is_free = True

    @classmethod
    def of(cls, param: str | None, message: str) -> Self:
        """The refusal of the field `param`; None for the request as a whole."""
        error = cls(message)
        error.param = param
        return error


class ContextOverflow(EngineRefused):
    """The prompt, or the prompt and the reply asked for, are longer than the model's context."""

    code = "context_length_exceeded"


class OperatorFault(EngineRefused):
    """The provider refuses the router itself: its key, its account, the address or the name of the model.

    It is never the client's 401, as the client's own key is in order. Another try does not help.
    """

    status = 502
    kind = "api_error"
    code = "upstream_misconfigured"
    is_lasting = True


class AnswerWithheld(EngineRefused):
    """The reply holds no answer, but a tool call for example, and is billed like any other."""

    status = 502
    kind = "api_error"
    code = "answer_withheld"
    is_free = False


class AnswerFiltered(AnswerWithheld):
    """The model refused, or a content policy kept its reply back. Another try would most likely fail too."""

    status = 400
    kind = "invalid_request_error"
    code = "content_filter"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 model` or `2 models`; `plural` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def error_text(error: BaseException) -> str:
    """What the trace of a query says of the error that ended it."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled by the client"
    return f"{type(error).__name__}: {error.message if isinstance(error, R2Error) else error}"
