"""What follows a failed model call: the rules of the project's only retry loop, `r2_serve.calls.caller`.

Hosted clients have retries turned off, and Ray Serve never retries. Two more rules stand in the loop itself:
a call is given up once the client has seen a part of its reply, and once it has killed `MAX_DEATHS` replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2_serve.errors import (
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
    ReplicaDied,
)

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 4.0
"""Longest wait for one model. If the provider asks for more, the next model is asked."""


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
