"""A simulated call and the parts that it passes between: its owner, its target and its replica."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from r2_serve.lab.simulate.machines import Card

IN_QUEUE, ON_ITS_WAY, AT_REPLICA, OVER = range(4)
"""States of a call."""


class CallOwner(Protocol):
    """The part that makes a call and hears how it ends."""

    def call_admitted(self, call: SimulatedCall) -> None:
        """A router stage has begun to work on the call and holds it until it is released."""
        ...

    def call_done(self, call: SimulatedCall) -> None: ...

    def call_failed(self, call: SimulatedCall, reason: str, retry_after_s: float | None) -> None: ...


class CallTarget(Protocol):
    """A deployment or a hosted model."""

    name: str

    def submit(self, call: SimulatedCall) -> None:
        """Takes the call; its owner may hear of the end before this returns."""
        ...

    def cancel(self, call: SimulatedCall) -> None:
        """Drops the call without telling its owner."""
        ...


class Replica:
    """One replica of a deployment."""

    takes_s: float | None = None
    """Constant time of every call. Such a replica does not see arrivals: `end_of` is called at each end."""

    def __init__(self) -> None:
        self.num_ongoing = 0
        """Calls that were sent here and have not ended."""
        self.stops_s = math.inf
        """Earliest end, once the replica has to stop."""
        self.is_dead = False

    def stand_on(self, card: Card | None) -> None:
        """Takes note of the card that it shares with others; None if it shares none."""

    def die(self) -> list[SimulatedCall]:
        """Ends at once, and gives the calls that it was working on."""
        raise NotImplementedError

    def begin(self, call: SimulatedCall) -> None:
        """Takes a call that has arrived."""
        raise NotImplementedError

    def end_of(self, call: SimulatedCall) -> None:
        """Ends a call whose `takes_s` is over."""
        raise NotImplementedError

    def abandon(self, call: SimulatedCall) -> None:
        """Drops a call that was cancelled after it arrived."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class SimulatedCall:
    """One attempt at one call."""

    owner: CallOwner
    position: int
    """The owner's own mark for the call."""
    prompt_tokens: float
    reply_tokens: float
    start_s: float
    chain: tuple[str, ...] = ()
    """The model asked for and its fallbacks, in order."""
    delay_s: float = 0.0
    """Delay on the way to the target, on top of the target's own hop."""
    rank: int = 0
    """Place in `chain` of the model that is asked now."""
    attempt: int = 1
    """Number of this attempt at that model."""
    passed_over: int = -1
    """Rank of the first model that was resting when its turn came; -1 if none was."""
    is_last_resort: bool = False
    """True if every other model has failed: the call then goes to a resting model as well."""
    state: int = field(default=OVER, init=False)
    begun_s: float = field(default=0.0, init=False)
    """Time at which work on the call began."""
    first_token_s: float = field(default=0.0, init=False)
    sequence: int = field(default=-1, init=False)
    """Number in the replica's batch."""
    mark: float = field(default=0.0, init=False)
    """Position in the replica's shared time."""
    share_s: float | None = field(default=None, init=False)
    """Replica time used by this call once it is answered; None for hosted models."""
    replica: Replica | None = field(default=None, init=False)
    target: CallTarget | None = field(default=None, init=False)


CallEnd = Callable[[SimulatedCall, Replica], None]
