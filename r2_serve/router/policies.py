"""Allocation policies: the learned allocator, or a rule that gives models to subtasks without a call."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from r2_serve.errors import InvalidRequest
from r2_serve.types import Allocation, Plan

LEARNED, CHEAPEST, AUTO = "learned", "cheapest", "auto"
FORMS = (
    "'learned', 'cheapest', 'all:MODEL', 'final-only:SMALL,LARGE', 'random', 'random:MODEL=SHARE,...', "
    "'one:MODEL' or 'one:auto'"
)
_NUM_MODELS = {LEARNED: 0, CHEAPEST: 0, "all": 1, "final-only": 2, "one": 1}
_FIXED = frozenset({"all", "final-only", "one"})


@dataclass(frozen=True)
class AllocationPolicy:
    """How the subtasks of a plan get their models.

    - `learned`: the allocator model chooses.
    - `cheapest`: every subtask goes to the first model of the pool that can take it.
    - `all:MODEL`: every subtask goes to MODEL.
    - `final-only:SMALL,LARGE`: the last subtask goes to LARGE, every other one to SMALL.
    - `one:MODEL`: the query is not split; MODEL gets all of it. With `one:auto` the router chooses the model.
    - `random`, or `random:MODEL=SHARE,...`: each subtask draws a model, with equal or the given shares.

    A gate of the virtual model may stand where a model stands.
    """

    kind: str
    models: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether the same plan gets the same models each time, by name."""
        return self.kind in _FIXED and self.models != (AUTO,)

    @property
    def chances(self) -> dict[str, float]:
        """The probability of each model for a step; empty where nothing is drawn at random."""
        return {
            model: share / sum(self.shares) for model, share in zip(self.models, self.shares, strict=False)
        }

    @classmethod
    def parse(cls, text: str, pool: Sequence[str], gates: Collection[str] = ()) -> AllocationPolicy:
        """The policy that `text` names; `gates` may be named like models of the pool.

        Raises: InvalidRequest if `text` has none of the forms above or names a model outside `pool`.
        """
        kind, _, details = text.partition(":")
        named = details.split(",") if details else []
        try:
            policy = (
                _random(named or [f"{model}=1" for model in pool])
                if kind == "random"
                else cls(kind, tuple(named))
            )
        except ValueError:
            policy = None
        is_known = policy is not None and (kind == "random" or _NUM_MODELS.get(kind) == len(policy.models))
        names = {*pool, *gates, AUTO} if kind == "one" else {*pool, *gates}
        if policy is None or not is_known or not set(policy.models) <= names:
            raise InvalidRequest(
                f"unknown policy {text!r}; expected {FORMS} with models of {[*pool, *gates]}", "r2.policy"
            )
        return replace(policy, models=(pool[0],)) if kind == CHEAPEST else policy

    @property
    def is_whole(self) -> bool:
        """Whether queries are not split."""
        return self.kind == "one"

    @property
    def asks_allocator(self) -> bool:
        """Whether the allocator gives models to the steps of a plan."""
        return self.kind == LEARNED

    def allocation(self, plan: Plan, *, seed: str) -> Allocation | None:
        """The allocation of `plan`; None for `learned` and `one:auto`.

        The same `seed` draws the same models again.
        """
        num = len(plan.subtasks)
        match self.kind:
            case "one" if self.models == (AUTO,):
                return None
            case "all" | "cheapest" | "one":
                models = self.models * num
            case "final-only":
                models = self.models[:1] * (num - 1) + self.models[1:]
            case "random":
                models = tuple(random.Random(seed).choices(self.models, self.shares, k=num))
            case _:
                return None
        return Allocation(models=models)


def _random(items: Sequence[str]) -> AllocationPolicy:
    """Raises: ValueError if a share is not a number, is negative, or all shares are 0."""
    shares = {model: float(share) for model, _, share in (item.partition("=") for item in items)}
    if min(shares.values()) < 0 or not 0 < sum(shares.values()) < math.inf:
        raise ValueError("shares must be numbers of at least 0, and one must be above 0")
    return AllocationPolicy("random", tuple(shares), tuple(shares.values()))
