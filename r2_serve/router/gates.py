"""Gates: actions that stand where a model may stand, and ask several models in turn. No Ray.

`GateShelf` makes the gates of a routing, once. `QueryGates` are those of one query: each has its models and
its judge, and a fitted mix has drawn one of its gates. `gate_run` runs one gate
for one step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from r2_serve.calls.pool import Pool
from r2_serve.config import GateConfig, RoutingConfig, VirtualModelConfig
from r2_serve.config.imported import imported
from r2_serve.errors import BookError, ConfigError, InvalidRequest
from r2_serve.gates.stored import PolicyFile, read_policy
from r2_serve.router.evidence import (
    CheckFunction,
    FittedJudge,
    Heard,
    Judge,
    Means,
    Question,
    RulesJudge,
    Verdict,
    checkers_of,
)
from r2_serve.router.rollout import is_by_candidate, router_of
from r2_serve.types import Allocation, GateNote, GateSpec, ModelCard, Need, Query
from r2_serve.types.gates import Check, Checker

OWN = "request"
"""The name of a gate that a request brings (`r2.gate` as an object)."""
LEARNING_RATE = 0.05
"""How fast the share of answers that go on follows the latest ones: the last twenty count most."""
UNKNOWN_SHARE = 0.5
"""Share of answers that are taken to go on to the next model before any was judged."""


@dataclass(frozen=True)
class Gate:
    """One gate as a query uses it."""

    name: str
    order: tuple[str, ...]
    """The models in the order in which they are asked."""
    judge: Judge
    checkers: tuple[Checker, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class _Made:
    """A gate of a config: one, or the parts of a fitted mix with their shares."""

    parts: tuple[Gate, ...]
    shares: tuple[float, ...]

    def drawn(self, query: Query, needs: Sequence[Need]) -> Gate:
        """The gate for a query; one and the same for one request id."""
        draw = random.Random(f"{query.request_id}:{self.parts[0].name}")
        gate = draw.choices(self.parts, self.shares)[0]
        is_of_tools = any(need.ability == "tools" for need in needs)
        if isinstance(gate.judge, FittedJudge) and is_of_tools:
            # it was fitted on answers in words, and knows nothing of calls of tools
            return replace(gate, order=gate.order[-1:])
        return gate


def make_gate(name: str, config: GateConfig, pool: Sequence[str], means: Means) -> _Made:
    """The gate of a config. Raises: ConfigError if its file or a function cannot be used."""
    if config.file is None:
        gate = rules_gate(name, config.rules, means, config.description)
        return _Made((gate,), (1.0,))
    file = read_gate_file(name, config.file, pool)
    assert file.grader is not None
    policy = file.policy
    if not policy.gates:
        alone = Gate(name, (policy.reference,), _Alone(), description=config.description)
        return _Made((alone,), (1.0,))
    parts = tuple(
        Gate(name, part.order, FittedJudge(part, file.grader, means), description=config.description)
        for part in policy.gates
    )
    return _Made(parts, policy.shares)


def read_gate_file(name: str, path: str, pool: Sequence[str]) -> PolicyFile:
    """A fitted gate that can be served by a pool. Raises: ConfigError."""
    try:
        file = read_policy(Path(path))
    except OSError as e:
        raise ConfigError(f"gate {name!r}: {path} cannot be read: {e.strerror or e}") from e
    except BookError as e:
        raise ConfigError(f"gate {name!r}: {e}") from e
    if file.grader is None:
        raise ConfigError(
            f"gate {name!r}: {path} does not say how answers are compared: fit it on a book of one grader"
        )
    asked = {file.policy.reference} if not file.policy.gates else set()
    asked |= {model for gate in file.policy.gates for model in gate.order}
    if unknown := sorted(asked - set(pool)):
        raise ConfigError(
            f"gate {name!r}: {path} asks {unknown}, which the pool {list(pool)} lacks: name the models of "
            "the book as the pool does, or fit without them (r2-train fit --without)"
        )
    return file


def rules_gate(name: str, spec: GateSpec, means: Means, description: str = "") -> Gate:
    """The gate of written rules. Raises: ConfigError if a function cannot be imported."""
    checks = {rule.function: own_check(rule.function) for rule in spec.accept if isinstance(rule, Check)}
    judge = RulesJudge(spec, means, checks)
    return Gate(name, spec.ask, judge, tuple(checkers_of(spec.accept)), description)


def own_check(path: str) -> CheckFunction:
    """The function at MODULE:NAME. Raises: ConfigError."""
    try:
        function = imported(path)
    except ConfigError as e:
        raise ConfigError(f"the check {path!r}: {e.message}") from e
    if not callable(function):
        raise ConfigError(f"the check {path!r} is no function")
    return function


class Reach:
    """How often the answer of each model of a gate was not enough, as this process has seen lately."""

    def __init__(self) -> None:
        self._goes_on: dict[tuple[str, str], float] = {}

    def learn(self, note: GateNote) -> None:
        """Learn from a gate that has run. The gates that requests bring are too many to remember."""
        for ask in note.asked if note.name != OWN else ():
            if ask.outcome != "refused" and ask.evidence != "last":
                key, went_on = (note.name, ask.model), float(ask.outcome != "accepted")
                old = self._goes_on.get(key, UNKNOWN_SHARE)
                self._goes_on[key] = old + LEARNING_RATE * (went_on - old)

    def shares(self, gate: Gate, models: Sequence[str]) -> list[float]:
        """The share of queries for which each of `models` is expected to be asked; 1 for the first."""
        shares, share = [], 1.0
        for place, model in enumerate(models, 1):
            shares.append(share)
            if place >= gate.judge.num_needed:
                share *= self._goes_on.get((gate.name, model), UNKNOWN_SHARE)
        return shares


@dataclass
class GateShelf:
    """The gates of a routing, by virtual model and name."""

    means: Means = field(default_factory=Means)
    _routing: RoutingConfig | None = None
    _made: Mapping[tuple[str, bool], Mapping[str, _Made]] = field(default_factory=dict)
    """Gates of each virtual model (False) and of its candidate on trial (True)."""
    _reach: dict[str, Reach] = field(default_factory=dict)

    def take(self, routing: RoutingConfig) -> None:
        """Make the gates of `routing`. Raises: ConfigError; the old ones then stay."""
        if routing is self._routing:
            return
        virtual_models = {(name, False): virtual for name, virtual in routing.virtual_models.items()}
        candidates = {(name, True): routing.candidate(name) for name in routing.rollouts}
        self._made = {place: self._gates(virtual) for place, virtual in (virtual_models | candidates).items()}
        self._reach = {name: self._reach.get(name, Reach()) for name in routing.virtual_models}
        self._routing = routing

    def _gates(self, virtual: VirtualModelConfig) -> dict[str, _Made]:
        made = virtual.gates.items()
        return {name: make_gate(name, config, virtual.pool, self.means) for name, config in made}

    def of(self, query: Query, routing: RoutingConfig, pool: Pool, needs: Sequence[Need]) -> QueryGates:
        """The gates of one query.

        Raises: ConfigError; InvalidRequest if the request names or brings a gate that is none.
        """
        self.take(routing)
        virtual = router_of(query, routing)
        if virtual is None:
            return QueryGates(pool, {}, Reach())
        place = query.model, is_by_candidate(query)
        gates = {name: made.drawn(query, needs) for name, made in self._made[place].items()}
        if isinstance(query.gate, GateSpec):
            check_own_gate(query.gate, virtual)
            gates[OWN] = rules_gate(OWN, query.gate, self.means)
        elif query.gate is not None and query.gate not in gates:
            raise InvalidRequest(
                f"no gate {query.gate!r}; choose one of {sorted(gates)}", "r2.gate", "invalid_value"
            )
        return QueryGates(pool, gates, self._reach[query.model])


def check_own_gate(spec: GateSpec, virtual: VirtualModelConfig) -> None:
    """Check a gate that a request brings: it asks models of the pool, and runs no code of the server.

    Raises: InvalidRequest.
    """
    named = [*spec.ask, *(checker.model for checker in checkers_of(spec.accept))]
    unknown = [model for model in named if model not in {*virtual.pool, *virtual.checkers}]
    if unknown:
        raise InvalidRequest(
            f"the gate asks {unknown[0]!r}; choose among {list(virtual.pool)}", "r2.gate", "invalid_value"
        )
    if any(isinstance(evidence, Check) for evidence in spec.accept):
        raise InvalidRequest(
            "a request cannot name code of the server: the operator may put a check into the config's gates",
            "r2.gate",
            "invalid_value",
        )


@dataclass(frozen=True)
class QueryGates:
    """The gates of one query, by name."""

    pool: Pool
    by_name: Mapping[str, Gate]
    reach: Reach

    def get(self, name: str) -> Gate | None:
        """The gate of that name; None for a model."""
        return self.by_name.get(name)

    def models(self, name: str, needs: Sequence[Need] = ()) -> tuple[str, ...]:
        """The models of gate `name` that can take a step with these needs, in order; a model by its name."""
        if (gate := self.by_name.get(name)) is None:
            return (name,)
        return tuple(model for model in gate.order if self.pool[model].config.lacking(needs) is None)

    def shares(self, name: str, models: Sequence[str]) -> list[float]:
        """The share of queries for which each of `models` of `name` is expected to be asked."""
        gate = self.by_name.get(name)
        return [1.0] * len(models) if gate is None else self.reach.shares(gate, models)

    def checkers(self, name: str) -> tuple[Checker, ...]:
        """The models that check answers of `name`."""
        gate = self.by_name.get(name)
        return () if gate is None else gate.checkers

    def first_models(self, allocation: Allocation) -> Allocation:
        """`allocation` with the model that is asked first in place of each gate."""
        return Allocation(models=tuple(self.models(name)[0] for name in allocation.models))

    def cards(self) -> list[ModelCard]:
        """The gates as an allocator reads of them, at the price that they are expected to have."""
        return [self._card(gate) for name, gate in self.by_name.items() if name != OWN]

    def _card(self, gate: Gate) -> ModelCard:
        cards = [self.pool[model].config for model in gate.order]
        shares = [Decimal(f"{share:.4f}") for share in self.reach.shares(gate, gate.order)]
        asked = zip(cards, shares, strict=True)
        usd_in, usd_out = Decimal(0), Decimal(0)
        for card, share in asked:
            usd_in += share * card.usd_per_mtok_in
            usd_out += share * card.usd_per_mtok_out
        usual = f"asks {', then '.join(gate.order)}, until there is evidence that the answer is right"
        return ModelCard(
            name=gate.name,
            group=cards[-1].group,
            usd_per_mtok_in=usd_in,
            usd_per_mtok_out=usd_out,
            description=gate.description or usual,
        )


class _Alone:
    """The judge of a fit that found no gate to keep its promise: the reference answers alone."""

    wants_confidence, keeps_last, num_needed = False, True, 1

    async def verdict(
        self, question: Question, heard: Sequence[Heard], asked: str, *, is_last: bool
    ) -> Verdict:
        return Verdict(True, "last", "the fit found no gate that does as well for less", len(heard) - 1)
