"""A stage of the pipeline in a process of its own, which reports every call it made, whether it succeeded or
not.

The report holds the error instead of raising it across processes: otherwise no ledger would have the calls of
a stage that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from r2_serve.calls.budget import Budget
from r2_serve.calls.ledger import Ledger
from r2_serve.errors import EngineUnavailable, R2Error, places
from r2_serve.types import CallRecord, TraceContext

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageReport(Generic[Result]):
    """The result of a stage or its error, and its calls, settled in a ledger of its own."""

    calls: tuple[CallRecord, ...]
    result: Result | None = None
    error: R2Error | None = None
    """EngineUnavailable stands for any error that is not an R2Error."""


async def report_of(
    stage: Callable[[Ledger], Awaitable[Result]], budget: Budget, context: TraceContext | None = None
) -> StageReport[Result]:
    """Runs `stage` on a ledger of its own within `budget`. Raises nothing but a cancellation."""
    ledger = Ledger(budget, context=context)
    error: R2Error
    try:
        result = await stage(ledger)
        return StageReport(tuple(ledger.calls), result)
    except R2Error as e:
        error = e
    except Exception as e:  # noqa: BLE001  the calls it made must be reported in any case
        _log.error("internal error in a stage: %s at %s", type(e).__name__, places(e))
        error = EngineUnavailable(f"{type(e).__name__}: {e}"[:200])
    return StageReport(tuple(ledger.calls), error=error)
