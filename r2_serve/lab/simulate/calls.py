"""A call on its way: what all parts of the model hand to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from r2_serve.lab.simulate.replicas import Replica

IN_QUEUE, ON_ITS_WAY, AT_REPLICA, OVER = range(4)
"""States of a call."""


class Owner(Protocol):
    """Who makes calls."""

    def call_admitted(self, call: Call) -> None:
        """A stage has begun to work on it, and holds it until it is released."""
        ...

    def call_done(self, call: Call) -> None: ...

    def call_failed(self, call: Call, reason: str, retry_after_s: float | None) -> None: ...


class Target(Protocol):
    """What calls are made to: a deployment or a hosted model."""

    name: str

    def submit(self, call: Call) -> None:
        """`owner` is told what becomes of it, be it at once."""
        ...

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more, and `owner` is told nothing."""
        ...


class Call:
    """One attempt at one call. `position` is its owner's own mark."""

    __slots__ = (
        "attempt",
        "begun_s",
        "chain",
        "delay_s",
        "first_token_s",
        "is_last_resort",
        "mark",
        "owner",
        "passed_over",
        "position",
        "prompt_tokens",
        "rank",
        "replica",
        "reply_tokens",
        "sequence",
        "share_s",
        "start_s",
        "state",
        "target",
    )

    def __init__(
        self, owner: Owner, position: int, prompt_tokens: float, reply_tokens: float, start_s: float
    ) -> None:
        self.owner = owner
        self.position = position
        self.prompt_tokens = prompt_tokens
        self.reply_tokens = reply_tokens
        self.start_s = start_s
        self.begun_s = start_s
        """When work on it began, where it had to wait for that."""
        self.state = OVER
        self.chain: tuple[str, ...] = ()
        """The model asked for and its fallbacks, in order; `rank` is the place in it of the one asked now."""
        self.rank = 0
        self.attempt = 1
        """Of that model."""
        self.delay_s = 0.0
        """On its way, on top of the hop to its target: of the stage that makes it."""
        self.passed_over = -1
        """Rank of the first model that rested when its turn came."""
        self.is_last_resort = False
        """Every other model has failed: goes to one that rests, too."""
        self.sequence = -1
        """Its number in the replica's batch."""
        self.first_token_s = 0.0
        self.mark = 0.0
        """In its replica's shared time."""
        self.share_s: float | None = None
        """Of its replica's time, once it is answered; None of a hosted model."""
        self.replica: Replica | None = None
        self.target: Target | None = None
