"""What a request may still spend: its own budget, and the purse that it shares with other requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol

from r2_serve.errors import BudgetExceeded, QuotaExceeded
from r2_serve.types import Priority


@dataclass(frozen=True)
class Budget:
    """What a request may spend; None is no limit."""

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost_usd: Decimal | None = None
    cost_limit: str = "r2.max_cost_usd"
    """The name of what sets `max_cost_usd`, for the message of a refusal."""
    priority: Priority = "user"
    """The rank of the request's calls in a busy engine."""


@dataclass(frozen=True)
class Need:
    """The most that calls are expected to need."""

    calls: int = 0
    tokens: int = 0
    usd: Decimal = Decimal(0)

    def __add__(self, other: Need) -> Need:
        return Need(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)


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


class NoPurse:
    """The purse of a client without a budget."""

    def left_usd(self) -> None:
        return None

    def hold(self, usd: Decimal) -> None: ...

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None: ...

    def refusal(self) -> QuotaExceeded:
        return QuotaExceeded("the budget is used up")


class Allowance:
    """Counts the calls of one request, as reserved while they run and as used once they have ended."""

    def __init__(self, budget: Budget, purse: Purse | None = None) -> None:
        self.budget, self._purse = budget, purse or NoPurse()
        self._num_calls, self._tokens, self._usd = 0, 0, Decimal(0)
        self._prepaid_usd = Decimal(0)
        """Held in the purse for calls that have not begun."""

    def begin(self, tokens: int, usd: Decimal) -> None:
        """A call begins that may use `tokens` and cost `usd`.

        Raises: BudgetExceeded if calls that ended and calls in progress leave too little.
        """
        self._check_room(Need(1, tokens, usd))
        prepaid_usd = min(self._prepaid_usd, usd)
        self._prepaid_usd -= prepaid_usd
        self._purse.hold(usd - prepaid_usd)
        self._count(1, tokens, usd)

    def has_room(self, need: Need) -> bool:
        """Whether calls that need that much may begin."""
        try:
            self._check_room(need)
        except BudgetExceeded:
            return False
        return True

    def refusal_of(self, need: Need) -> BudgetExceeded:
        """Why calls that need that much may not begin. They must have no room."""
        try:
            self._check_room(need)
        except BudgetExceeded as e:
            return e
        return BudgetExceeded("the budget was used up by other requests at that moment; try again")

    @contextmanager
    def set_aside(self, need: Need) -> Iterator[None]:
        """Keep what `need` says from the calls inside, for calls after them."""
        self._purse.hold(need.usd)
        self._count(need.calls, need.tokens, need.usd)
        try:
            yield
        finally:
            self._count(-need.calls, -need.tokens, -need.usd)
            self._purse.settle(need.usd, Decimal(0))

    @contextmanager
    def prepaid(self, usd: Decimal) -> Iterator[None]:
        """Hold `usd` in the purse for the calls inside, so that no other request takes it before them."""
        self._purse.hold(usd)
        self._prepaid_usd += usd
        try:
            yield
        finally:
            left_usd, self._prepaid_usd = self._prepaid_usd, Decimal(0)
            self._purse.settle(left_usd, Decimal(0))

    def end(self, held_tokens: int, held_usd: Decimal, tokens: int, usd: Decimal) -> None:
        """A call for which `held_tokens` and `held_usd` were set aside has used `tokens` and cost `usd`."""
        self._purse.settle(held_usd, usd)
        self._count(0, tokens - held_tokens, usd - held_usd)

    def add(self, tokens: int, usd: Decimal) -> None:
        """A call that was never begun here has ended: another process made it."""
        self._purse.settle(Decimal(0), usd)
        self._count(1, tokens, usd)

    def remaining(self) -> Budget:
        """What calls not yet begun may spend, by the request's own budget and by the purse."""
        own, in_purse = self._left_of_budget(), self._left_in_purse()
        return replace(own, max_cost_usd=in_purse) if self._is_purse_narrower(own, in_purse) else own

    @contextmanager
    def held(self, usd: Decimal) -> Iterator[None]:
        """Hold up to `usd` in the purse for a stage in another process, until its calls are added.

        The retries of those calls are not held for.
        """
        left_usd = self._left_in_purse()
        held_usd = Decimal(0) if left_usd is None else max(Decimal(0), min(left_usd, usd))
        self._purse.hold(held_usd)
        try:
            yield
        finally:
            self._purse.settle(held_usd, Decimal(0))

    def refusal(self, error: BudgetExceeded) -> BudgetExceeded:
        """`error` of a stage in another process, or the purse's own error if the purse was narrower."""
        is_purse = self._is_purse_narrower(self._left_of_budget(), self._left_in_purse())
        return self._purse.refusal() if is_purse else error

    @staticmethod
    def _is_purse_narrower(own: Budget, in_purse: Decimal | None) -> bool:
        return in_purse is not None and (own.max_cost_usd is None or in_purse < own.max_cost_usd)

    def _count(self, calls: int, tokens: int, usd: Decimal) -> None:
        self._num_calls += calls
        self._tokens += tokens
        self._usd += usd

    def _left_of_budget(self) -> Budget:
        calls, tokens, usd = self.budget.max_calls, self.budget.max_tokens, self.budget.max_cost_usd
        return Budget(
            max_calls=None if calls is None else calls - self._num_calls,
            max_tokens=None if tokens is None else tokens - self._tokens,
            max_cost_usd=None if usd is None else usd - self._usd,
            priority=self.budget.priority,
        )

    def _left_in_purse(self) -> Decimal | None:
        left_usd = self._purse.left_usd()
        return None if left_usd is None else left_usd + self._prepaid_usd

    def _check_room(self, need: Need) -> None:
        left, limit, in_purse = self._left_of_budget(), self.budget, self._left_in_purse()
        what = "the next call" if need.calls == 1 else f"the {need.calls} calls of the plan"
        if left.max_calls is not None and left.max_calls < need.calls:
            raise BudgetExceeded(
                f"{what} would be more than the {limit.max_calls} model calls of a request, "
                f"{max(left.max_calls, 0)} of which are left; raise limits.max_calls"
            )
        if left.max_tokens is not None and left.max_tokens < need.tokens:
            raise BudgetExceeded(
                f"{what} may use {need.tokens} tokens; {max(left.max_tokens, 0)} of the request's "
                f"{limit.max_tokens} are left; raise limits.max_total_tokens or lower max_tokens"
            )
        if left.max_cost_usd is not None and left.max_cost_usd < need.usd:
            raise BudgetExceeded(
                f"{what} may cost up to {need.usd:f} USD; {max(left.max_cost_usd, Decimal(0)):f} of the "
                f"request's {limit.max_cost_usd:f} USD are left; raise {limit.cost_limit} or lower max_tokens"
            )
        if in_purse is not None and in_purse < need.usd:
            raise self._purse.refusal()
