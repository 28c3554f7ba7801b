"""The router as the simulation's queries see it: what all of them share, and who is told of them.

Every router replica together: their admission is that of one deployment's replicas, their timeouts are checked in one sweep.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from r2_serve.config import LimitsConfig, ModelConfig, SpillConfig, VirtualModelConfig
from r2_serve.lab.simulate.calls import Call, Target
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.queries import Query
from r2_serve.lab.simulate.sizes import Sizes


class Outcomes(Protocol):
    """Told what became of each query."""

    def ended(self, query: Query, status: int, end_s: float) -> None: ...


class Plans(Protocol):
    """Told what queries will ask for, and what they have asked."""

    def opened(self, query: Query) -> None: ...

    def planning(self, query: Query, model: str, num_calls: int) -> None:
        """The planner or the picker is asked."""
        ...

    def planned(self, query: Query) -> None:
        """And has answered."""
        ...

    def allocated(self, query: Query) -> None: ...

    def answered(self, query: Query, model: str, call: Call) -> None:
        """One of its calls, just now, by `model`."""
        ...

    def started(self, query: Query, position: int) -> None: ...

    def finished(self, query: Query, position: int) -> None: ...

    def ended(self, query: Query) -> None: ...


@dataclass(frozen=True)
class PooledModel:
    """A model of the pool: how it is reached, what it costs, what takes its place."""

    config: ModelConfig
    target: Target
    chain: tuple[str, ...]
    """Itself and its fallbacks."""
    usd_per_token_in: float
    usd_per_token_out: float

    @property
    def price(self) -> tuple[float, float]:
        return self.usd_per_token_out, self.usd_per_token_in


@dataclass
class Router:
    """Every router replica together, and what all queries share."""

    clock: Clock
    limits: LimitsConfig
    virtual: VirtualModelConfig | None
    """None: queries go straight to one model."""
    models: Mapping[str, PooledModel]
    router: Deployment
    decomposer: Deployment
    allocator: Deployment
    outcomes: Outcomes
    plans: Plans | None
    draw: random.Random
    stage_hop_s: float = 0.0
    """From the router to the decomposer or the allocator and back; spent on the way of the calls that those make."""
    active: dict[Query, None] = field(default_factory=dict)
    """Admitted and not ended, oldest first."""

    def arrives(self, index: int, intended_s: float, sizes: Sizes) -> None:
        query = Query(self, index, intended_s, sizes)
        self.router.submit(query.place)

    def shortest_timeout_s(self) -> float:
        stages = (self.virtual.decomposer.timeout_s, self.virtual.allocator.timeout_s) if self.virtual else ()
        return min(
            self.limits.deadline_s, *stages, *(model.config.timeout_s for model in self.models.values())
        )

    @property
    def spill(self) -> SpillConfig | None:
        return self.virtual.spill if self.virtual is not None else None

    def with_room(self, chosen: str, prompt_tokens: float, reply_tokens: float) -> str:
        """As `r2_serve.router.spill.with_room`; running replicas are known at once here, there within a second."""
        assert self.virtual is not None and self.virtual.spill is not None
        calls_each, price = self.virtual.spill.calls_per_replica, self.models[chosen].price

        def has_room(name: str) -> bool:
            target = self.models[name].target
            return not isinstance(
                target, Deployment
            ) or target.num_at_work + target.num_queued < calls_each * len(target.running)

        if has_room(chosen):
            return chosen
        for name in sorted(
            (name for name in self.virtual.pool if name != chosen), key=lambda name: self.models[name].price
        ):
            model = self.models[name]
            fits = prompt_tokens + reply_tokens <= model.config.context_tokens
            if model.price >= price and fits and has_room(name):
                return name
        return chosen

    def check_timeouts(self) -> None:
        """Of whatever has waited too long; to be called every now and then."""
        now, shortest_s = self.clock.now, self.shortest_timeout_s()
        for query in _older_than(self.active, now - shortest_s):
            query.check_timeouts(now)


def _older_than(queries: Mapping[Query, None], begun_s: float) -> list[Query]:
    """A list of its own, since a check may end them."""
    found = []
    for query in queries:
        if query.begun_s > begun_s:
            break
        found.append(query)
    return found
