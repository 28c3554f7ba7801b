"""The calls of one request: each is reserved before it starts, settled to its actual usage, and added up.

A reservation holds the most that a call can cost, so calls that run at once cannot overspend a limit between
them. Amounts are exact `Decimal` USD; nothing is summed in floats."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from decimal import Decimal

from r2_serve.calls.budget import Allowance, Budget, Purse
from r2_serve.calls.estimates import Prompt
from r2_serve.errors import EngineError
from r2_serve.types import CallRecord, CallStage, ModelCard, TraceContext, Usage, Work, new_span_id


class Reservation:
    """One call, from just before it starts until `settle` or `fail`; the first of them counts."""

    def __init__(
        self,
        ledger: Ledger,
        card: ModelCard,
        prompt: Prompt,
        max_tokens: int,
        record: CallRecord,
        *,
        is_limited: bool,
    ) -> None:
        self.prompt, self.bound = prompt, prompt.most_usage(max_tokens)
        self.bound_usd = card.cost_usd(self.bound)
        self._ledger, self._card, self._record = ledger, card, record
        self._is_open, self._is_limited = True, is_limited

    @property
    def trace_parent(self) -> str | None:
        """The header `traceparent` of the call; None if the query is in no distributed trace."""
        context, span_id = self._ledger.context, self._record.span_id
        return context.header(span_id) if context and span_id else None

    def settle(self, usage: Usage, *, is_estimated: bool = False, work: Work | None = None) -> None:
        """The call succeeded and used `usage`; `work` is the time that it took of a replica."""
        self._close(usage, outcome="ok", is_estimated=is_estimated, work=work)

    def fail(self, error: BaseException, *, received_bytes: int = 0, reported: Usage | None = None) -> None:
        """The call failed or was cancelled.

        It costs the usage that the provider reported, with the error or before (`reported`). Without a
        report, a call that was refused before any work costs nothing. Every other one may have been billed
        (cut streams, timeouts, 5xx, cancelled calls): it is estimated from what was sent and received."""
        usage = error.usage if isinstance(error, EngineError) and error.usage is not None else reported
        is_free = isinstance(error, EngineError) and error.is_free and not received_bytes
        is_estimated = usage is None and not is_free
        if usage is None:
            usage = Usage() if is_free else self.likely_usage(received_bytes)
        outcome = "failed" if isinstance(error, Exception) else "cancelled"
        self._close(usage, outcome=outcome, is_estimated=is_estimated, error=type(error).__name__)

    def likely_usage(self, received_bytes: int) -> Usage:
        """An estimate of the usage once `received_bytes` of the reply have come."""
        most = self.bound.completion_tokens if self._is_limited else None
        return self.prompt.likely_usage(received_bytes, most)

    def _close(self, usage: Usage, **ending: object) -> None:
        if not self._is_open:
            return
        self._is_open = False
        ending |= {
            "usage": usage,
            "cost_usd": self._card.cost_usd(usage),
            "end_s": self._ledger.elapsed_s(),
        }
        self._ledger.enter(self, self._record.model_copy(update=ending))


class Ledger:
    """All calls of one request. Not thread-safe: it lives on one event loop."""

    def __init__(
        self,
        budget: Budget,
        *,
        purse: Purse | None = None,
        on_call: Callable[[CallRecord], None] | None = None,
        context: TraceContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_call` takes each call once it is settled; `context` is the query's place in a distributed
        trace, where each call gets a span; `clock` is monotonic and in seconds."""
        self.calls: list[CallRecord] = []
        self.allowance = Allowance(budget, purse)
        self.context = context
        self._on_call, self._clock, self._start_s = on_call, clock, clock()

    def elapsed_s(self) -> float:
        """Seconds since the request's start."""
        return self._clock() - self._start_s

    @property
    def usage(self) -> Usage:
        return sum((call.usage for call in self.calls), Usage())

    @property
    def cost_usd(self) -> Decimal:
        return total_cost_usd(self.calls)

    def reserve(
        self,
        card: ModelCard,
        prompt: Prompt,
        max_tokens: int,
        *,
        stage: CallStage,
        is_limited: bool = True,
        subtask: int | None = None,
        attempt: int = 1,
        passed_over: tuple[str, ...] = (),
    ) -> Reservation:
        """Set aside the most that a call can cost, or if its reply is not limited, what it likely costs.

        Raises: BudgetExceeded if calls that ended and calls in progress leave too little.
        """
        record = CallRecord(
            stage=stage,
            model=card.name,
            subtask=subtask,
            attempt=attempt,
            passed_over=passed_over,
            start_s=self.elapsed_s(),
            span_id=new_span_id() if self.context else None,
        )
        reservation = Reservation(self, card, prompt, max_tokens, record, is_limited=is_limited)
        self.allowance.begin(reservation.bound.total_tokens, reservation.bound_usd)
        return reservation

    def enter(self, reservation: Reservation, call: CallRecord) -> None:
        """The call of `reservation` has ended as `call` says."""
        bound = reservation.bound.total_tokens
        self.allowance.end(bound, reservation.bound_usd, call.usage.total_tokens, call.cost_usd)
        self._append(call)

    def absorb(self, calls: Iterable[CallRecord], *, shift_s: float = 0.0) -> None:
        """Take over the calls of a stage in another process, whose ledger began `shift_s` after this one."""
        for call in calls:
            self.allowance.add(call.usage.total_tokens, call.cost_usd)
            times = {"start_s": call.start_s + shift_s, "end_s": call.end_s + shift_s}
            self._append(call.model_copy(update=times))

    def _append(self, call: CallRecord) -> None:
        self.calls.append(call)
        if self._on_call is not None:
            self._on_call(call)


def total_cost_usd(calls: Iterable[CallRecord], *, stage: CallStage | None = None) -> Decimal:
    """Exact sum, of one stage or of all."""
    return sum((call.cost_usd for call in calls if stage in (None, call.stage)), Decimal(0))
