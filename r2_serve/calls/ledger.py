"""The money of one request: every call is reserved before it starts and settled to its actual usage.

A reservation holds the most a call can cost (each byte of the prompt a token, the longest reply), so calls that
run at once cannot overspend a limit between them. Amounts are exact `Decimal` USD; nothing is summed in floats.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Protocol

from r2_serve.config import ModelConfig
from r2_serve.errors import AnswerWithheld, BudgetExceeded, EngineError, EngineRefused, QuotaExceeded
from r2_serve.types import CallRecord, CallStage, Message, ModelCard, Usage, Work

TEMPLATE_TOKENS_PER_MESSAGE = 16
"""Allowance for the chat template around each message."""
BYTES_PER_TOKEN = 4
"""Typical of English text; only for calls that reported no usage."""


@dataclass(frozen=True)
class Budget:
    """What a request may still spend; None is no limit."""

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost_usd: Decimal | None = None


class Purse(Protocol):
    """Money that many requests draw on at once, such as the budget of a client key."""

    def left_usd(self) -> Decimal | None:
        """What a call not yet held may cost; None is no limit."""
        ...

    def hold(self, usd: Decimal) -> None:
        """A call that may cost `usd` begins."""
        ...

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        """Calls for which `held_usd` was held have ended and cost `spent_usd`."""
        ...

    def refusal(self) -> QuotaExceeded:
        """Why a call that may cost more than is left does not begin."""
        ...


@dataclass(frozen=True)
class Prompt:
    """What a call sends and is billed for, before anybody has counted its tokens."""

    messages: Sequence[Message]
    format_sent: dict[str, Any] | None = None
    """A JSON schema or response format, where it is sent."""

    @classmethod
    def to(
        cls, model: ModelConfig, messages: Sequence[Message], format_sent: dict[str, Any] | None
    ) -> Prompt:
        return cls(messages, format_sent if model.sends_schema else None)

    def most_usage(self, max_tokens: int) -> Usage:
        """An upper bound: byte-level tokenizers never make more tokens than bytes."""
        texts = (
            sum(len(m.content.encode()) + TEMPLATE_TOKENS_PER_MESSAGE for m in self.messages)
            + TEMPLATE_TOKENS_PER_MESSAGE
        )
        return Usage(prompt_tokens=texts + format_chars(self.format_sent), completion_tokens=max_tokens)

    def likely_usage(self, received_bytes: int, max_tokens: int) -> Usage:
        """An estimate within that bound, for a call that was sent but reported no usage."""
        sizes = [*(len(m.content.encode()) for m in self.messages), format_chars(self.format_sent)]
        received = min(-(-received_bytes // BYTES_PER_TOKEN), max_tokens)
        return Usage(
            prompt_tokens=sum(-(-size // BYTES_PER_TOKEN) for size in sizes), completion_tokens=received
        )


def format_chars(format_sent: dict[str, Any] | None) -> int:
    """Length of a schema or response format as JSON, in the ASCII that it is sent in."""
    return 0 if format_sent is None else len(json.dumps(format_sent))


class Reservation:
    """One call, from just before it starts until `settle` or `fail`; either counts once."""

    def __init__(
        self, ledger: Ledger, card: ModelCard, prompt: Prompt, max_tokens: int, open_record: CallRecord
    ) -> None:
        self.bound = prompt.most_usage(max_tokens)
        self.bound_usd = card.cost_usd(self.bound)
        self._ledger, self._card, self._prompt, self._record = ledger, card, prompt, open_record

    def settle(self, usage: Usage, *, is_estimated: bool = False, work: Work | None = None) -> CallRecord:
        """The call succeeded and used `usage`; of a replica it took `work`."""
        return self._close(outcome="ok", usage=usage, is_estimated=is_estimated, work=work)

    def fail(self, error: BaseException, *, received_bytes: int = 0, told: Usage | None = None) -> CallRecord:
        """The call failed or was cancelled.

        It costs what the provider told of it, with the error or before (`told`). Where it told nothing, a call refused before any
        work costs nothing; others may have been billed: estimated.
        """
        usage = error.usage if isinstance(error, EngineError) and error.usage is not None else told
        is_estimated = usage is None and not (_is_free(error) and not received_bytes)
        if usage is None:
            usage = (
                self._prompt.likely_usage(received_bytes, self.bound.completion_tokens)
                if is_estimated
                else Usage()
            )
        outcome = "failed" if isinstance(error, Exception) else "cancelled"
        return self._close(
            outcome=outcome, usage=usage, error=type(error).__name__, is_estimated=is_estimated
        )

    def _close(self, *, usage: Usage, **fields: object) -> CallRecord:
        closing = {
            "usage": usage,
            "cost_usd": self._card.cost_usd(usage),
            "end_s": self._ledger.elapsed_s(),
            **fields,
        }
        record = self._record.model_copy(update=closing)
        self._ledger._close(self, record)
        return record


def _is_free(error: BaseException) -> bool:
    return isinstance(error, EngineRefused) and not isinstance(error, AnswerWithheld)


def _to_nobody(call: CallRecord) -> None:
    return None


class Ledger:
    """All calls of one request. Not thread-safe: it lives on one event loop."""

    def __init__(
        self,
        budget: Budget,
        *,
        purse: Purse | None = None,
        on_call: Callable[[CallRecord], None] = _to_nobody,
        clock: Callable[[], float] = time.monotonic,
        start_s: float | None = None,
    ) -> None:
        """`on_call` is told of each call once it is settled."""
        self.budget = budget
        self._purse = purse
        self._on_call = on_call
        self.calls: list[CallRecord] = []
        self._open: set[Reservation] = set()
        self._committed_tokens = 0
        self._committed_usd = Decimal(0)
        self._clock = clock
        self._start_s = clock() if start_s is None else start_s

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
        subtask: int | None = None,
        attempt: int = 1,
        passed_over: tuple[str, ...] = (),
    ) -> Reservation:
        """Set aside the most that a call can cost.

        Raises: BudgetExceeded where calls settled and calls under way leave too little.
        """
        record = CallRecord(
            stage=stage,
            model=card.name,
            subtask=subtask,
            attempt=attempt,
            passed_over=passed_over,
            start_s=self.elapsed_s(),
        )
        reservation = Reservation(self, card, prompt, max_tokens, record)
        self._check_room_for(reservation)
        self._open.add(reservation)
        if self._purse is not None:
            self._purse.hold(reservation.bound_usd)
        self._commit(reservation.bound.total_tokens, reservation.bound_usd)
        return reservation

    def remaining(self) -> Budget:
        """What calls not yet reserved may spend, of the request's own limits and of the purse."""
        own, in_purse = self._remaining_of_own(), self._left_in_purse()
        if in_purse is None or (own.max_cost_usd is not None and own.max_cost_usd <= in_purse):
            return own
        return replace(own, max_cost_usd=in_purse)

    @contextmanager
    def held_for_stage(
        self, card: ModelCard, prompt: Prompt, max_tokens: int, num_calls: int
    ) -> Iterator[None]:
        """Holds in the purse what a stage that runs elsewhere may cost, until its calls are absorbed; not what its retries may."""
        left_usd = self._left_in_purse()
        if self._purse is None or left_usd is None:
            yield
            return
        held_usd = max(Decimal(0), min(left_usd, num_calls * card.cost_usd(prompt.most_usage(max_tokens))))
        self._purse.hold(held_usd)
        try:
            yield
        finally:
            self._purse.settle(held_usd, Decimal(0))

    def refusal(self, error: BudgetExceeded) -> BudgetExceeded:
        """`error`, of a stage that ran elsewhere within `remaining`, or the purse's own where that was the narrower limit."""
        own, in_purse = self._remaining_of_own().max_cost_usd, self._left_in_purse()
        is_purse = self._purse is not None and in_purse is not None and (own is None or in_purse < own)
        return self._purse.refusal() if self._purse is not None and is_purse else error

    def _left_in_purse(self) -> Decimal | None:
        return self._purse.left_usd() if self._purse is not None else None

    def _remaining_of_own(self) -> Budget:
        budget, tokens, cost = self.budget, self._committed_tokens, self._committed_usd
        return Budget(
            max_calls=None
            if budget.max_calls is None
            else budget.max_calls - len(self.calls) - len(self._open),
            max_tokens=None if budget.max_tokens is None else budget.max_tokens - tokens,
            max_cost_usd=None if budget.max_cost_usd is None else budget.max_cost_usd - cost,
        )

    def absorb(self, calls: Iterable[CallRecord], *, shift_s: float = 0.0) -> None:
        """Take over calls settled in another ledger (of a stage that ran elsewhere), `shift_s` later than it says."""
        for call in calls:
            self._commit(call.usage.total_tokens, call.cost_usd)
            if self._purse is not None:
                self._purse.settle(Decimal(0), call.cost_usd)
            self._enter(
                call.model_copy(update={"start_s": call.start_s + shift_s, "end_s": call.end_s + shift_s})
            )

    def _close(self, reservation: Reservation, record: CallRecord) -> None:
        if reservation in self._open:
            self._open.remove(reservation)
            self._commit(
                record.usage.total_tokens - reservation.bound.total_tokens,
                record.cost_usd - reservation.bound_usd,
            )
            if self._purse is not None:
                self._purse.settle(reservation.bound_usd, record.cost_usd)
            self._enter(record)

    def _enter(self, call: CallRecord) -> None:
        self.calls.append(call)
        self._on_call(call)

    def _commit(self, tokens: int, cost_usd: Decimal) -> None:
        """Running totals of calls settled (as used) and under way (as reserved)."""
        self._committed_tokens += tokens
        self._committed_usd += cost_usd

    def _check_room_for(self, new: Reservation) -> None:
        left, limit, in_purse = self._remaining_of_own(), self.budget, self._left_in_purse()
        if left.max_calls is not None and left.max_calls < 1:
            raise BudgetExceeded(
                f"all {limit.max_calls} model calls of the request are used up; raise limits.max_calls"
            )
        if left.max_tokens is not None and left.max_tokens < new.bound.total_tokens:
            rest = max(left.max_tokens, 0)
            raise BudgetExceeded(
                f"the next call may use {new.bound.total_tokens} tokens; {rest} of the request's {limit.max_tokens} are left"
            )
        if left.max_cost_usd is not None and left.max_cost_usd < new.bound_usd:
            rest_usd = max(left.max_cost_usd, Decimal(0))
            raise BudgetExceeded(
                f"the next call may cost up to {new.bound_usd:f} USD; {rest_usd:f} of the request's {limit.max_cost_usd:f} USD are left; "
                "raise r2.max_cost_usd or lower max_tokens"
            )
        if self._purse is not None and in_purse is not None and in_purse < new.bound_usd:
            raise self._purse.refusal()


def lost_call(
    card: ModelCard, prompt: Prompt, stage: CallStage, error: BaseException, *, duration_s: float = 0.0
) -> CallRecord:
    """A call that another process made, or was about to, when it failed or was cancelled: its cost is an estimate."""
    ledger = Ledger(Budget())
    record = ledger.reserve(card, prompt, 1, stage=stage).fail(error)
    return record.model_copy(update={"start_s": 0.0, "end_s": duration_s})


def total_cost_usd(calls: Iterable[CallRecord], *, stage: CallStage | None = None) -> Decimal:
    """Exact sum, of one stage or of all."""
    return sum((call.cost_usd for call in calls if stage in (None, call.stage)), Decimal(0))
