"""What follows a failed model call: the rules of the project's only retry loop, `r2_serve.calls.caller`.

Hosted clients have retries turned off, and Ray Serve never retries. Two more rules stand in the loop itself:
a call is given up once the client has seen a part of its reply, and once it has killed `MAX_DEATHS` replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2_serve.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
    OperatorFault,
    ReplicaDied,
)

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 4.0
"""Longest wait for one model. If the provider asks for more, the next model is asked."""
RATE_LIMITED = 429


@dataclass(frozen=True)
class RetryRule:
    """What follows an error of one type."""

    error: type[EngineError]
    is_retried: bool
    """Whether the same model is asked again, at most `limits.max_attempts` times; else the next one is."""
    is_failure: bool
    """Whether the model comes closer to a rest (`r2_serve.calls.cooldown`)."""


RULES = (
    # A refusal shows that the model is there, and the same call would be refused again.
    RetryRule(EngineRefused, is_retried=False, is_failure=False),
    # The same model would take as long again; another one may be in time.
    RetryRule(EngineTimeout, is_retried=False, is_failure=True),
    # The call may have killed the replica, so it waits for its turn in quarantine.
    RetryRule(ReplicaDied, is_retried=True, is_failure=True),
    # Another try may find the provider reachable, or the rate limit lifted.
    RetryRule(NotStarted, is_retried=True, is_failure=True),
    RetryRule(EngineUnavailable, is_retried=True, is_failure=True),
    RetryRule(InvalidReply, is_retried=True, is_failure=True),
    RetryRule(EngineError, is_retried=True, is_failure=True),
)
"""The first rule whose type fits the error holds."""


def rule_for(error: EngineError) -> RetryRule:
    return next(rule for rule in RULES if isinstance(error, rule.error))


def asked_wait_s(error: EngineError) -> float | None:
    """The wait that the provider asked for (Retry-After)."""
    return error.retry_after_s if isinstance(error, EngineUnavailable) else None


def is_retried(error: EngineError) -> bool:
    """Whether the model that failed with `error` may be asked again."""
    return rule_for(error).is_retried and (asked_wait_s(error) or 0.0) <= LONGEST_BACKOFF_S


def backoff_s(num_tried: int, error: EngineError, jitter: float) -> float:
    """Seconds until the model may be asked again: what it asked for, else exponential, full jitter.

    `jitter` is drawn evenly from [0, 1). Source: "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015."""
    asked_s = asked_wait_s(error)
    if asked_s is not None:
        return asked_s
    return jitter * min(FIRST_BACKOFF_S * 2.0 ** (num_tried - 1), LONGEST_BACKOFF_S)


@dataclass(frozen=True)
class Failure:
    """One failed attempt of a call."""

    error: EngineError
    is_by_first: bool
    """Whether the model that was asked first failed, and not a fallback."""

    @property
    def rank(self) -> int:
        """How little the error tells the client: 0 for what the client can change, 5 for what it cannot.

        What a fallback refuses says little: the request was not meant for it.
        """
        error = self.error
        if isinstance(error, OperatorFault):
            return 5
        if isinstance(error, EngineRefused):
            return 0 if self.is_by_first and error.status < 500 else 4
        if error.status == RATE_LIMITED:
            return 1
        return 2 if isinstance(error, EngineUnavailable) else 3


def most_telling(failures: Sequence[Failure]) -> EngineError:
    """The error of a call that every model failed: the last of those with the lowest rank.

    An error that passes by itself carries the shortest wait that any provider asked for.
    """
    told = min(reversed(failures), key=lambda failure: failure.rank).error
    waits_s = [wait_s for failure in failures if (wait_s := asked_wait_s(failure.error)) is not None]
    if isinstance(told, EngineUnavailable) and waits_s:
        told.retry_after_s = min(waits_s)
        told.args = (told.message, told.retry_after_s, *told.args[2:])
    return told
