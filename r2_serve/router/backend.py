"""What the HTTP layer needs of a router. `r2_serve.router.router.Router` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from r2_serve.calls.budget import Purse
from r2_serve.router.events import EventBus
from r2_serve.types import Ability, Answer, ModelCard, OnDelta, Query


@dataclass(frozen=True)
class ModelListing:
    """A name that clients may ask for."""

    id: str
    is_virtual: bool
    description: str = ""
    example: str = ""
    """A question for those who have none."""
    card: ModelCard | None = None
    """Price and ability of a pool model; None for a virtual one."""
    abilities: frozenset[Ability] = frozenset()
    """What the model can do; for a virtual model, what its pool can do, without embeddings."""
    gates: tuple[str, ...] = ()
    """The gates of a virtual model that a request may name."""


class RouterBackend(Protocol):
    """The router as the endpoint sees it."""

    @property
    def prices_as_of(self) -> str:
        """Date of the prices, or the empty string."""
        ...

    @property
    def deadline_s(self) -> float:
        """Seconds that a query may take at most, its wait in the queue included."""
        ...

    @property
    def events(self) -> EventBus:
        """What happens to queries, for those who watch."""
        ...

    def models(self) -> Sequence[ModelListing]:
        """Every name that `answer` takes now, in the order to show. Each request calls this."""
        ...

    async def answer(
        self, query: Query, on_delta: OnDelta | None = None, purse: Purse | None = None
    ) -> Answer:
        """The answer to `query`. Every call made for it is paid from `purse`.

        The pieces given to `on_delta`, joined, begin `Answer.text` (outer white space aside).

        Raises: R2Error and nothing else. Cancelling the task stops every call made for the query.
        """
        ...

    async def count_tokens(self, query: Query) -> int:
        """The tokens of the query's prompt: the provider's own count, or else an estimate.

        Raises: R2Error and nothing else.
        """
        ...

    async def ready(self) -> tuple[bool, str]:
        """Whether each virtual model can be answered now, and what is not well, if anything."""
        ...
