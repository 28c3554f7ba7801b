"""What a trace says of serving beside the work itself: savings, and the router that is tried out."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Literal

from r2_serve.types.calls import Record

Arm = Literal["incumbent", "canary", "shadow"]
"""The router that answered: the present one, the candidate for a client, or the candidate unseen."""


def text_hash(text: str) -> str:
    """The first 16 digits of the SHA-256 hash of a text, which tell texts apart without showing them."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


class Savings(Record):
    """What a query cost less than if one model had answered all of it."""

    baseline: str
    """The model that is compared with."""
    baseline_usd: Decimal
    """The price of the conversation as its prompt and of the answer as its reply, in one call."""
    saved_usd: Decimal
    """`baseline_usd` less the bill; negative where the router cost more."""


class RolloutNote(Record):
    """The part of a query in the trial of a candidate (`r2_serve.router.rollout`)."""

    candidate: str
    """The name of the candidate that was on trial, also where it did not answer."""
    arm: Arm
    share: float
    """The probability with which a query gets this arm."""
    unit: str
    """A hash of what keeps its arm: the conversation, or the client's key."""
    of: str | None = None
    """The task of the answer that the client got (`Trace.task`); None unless the arm is `shadow`."""
