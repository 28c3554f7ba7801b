"""The fitted gate: models in an order, and after each answer a rule that says whether it is good enough.

The rule compares two numbers. One is the probability that the leading answer is right (`posterior`). The
other is what going on is worth: the probability of a right answer at the end, less what the further replies
cost, where one USD is worth `value_per_usd` right answers. Going on is worth little where the leading answer
is probably right, and also where the question seems too hard for the models that follow. It is a linear
function of the state, which `lab.outcomes.rules` fits.

The answer of a gate is the leading answer where it stops, which need not be the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from pydantic import model_validator

from r2_serve.gates.belief import NUM_COUNTS, Belief, Evidence, Scales, Utilities, Weights, belief
from r2_serve.gates.features import (
    ANSWER_FEATURES,
    PROMPT_FEATURES,
    REPLY_FEATURES,
    answer_features,
    prompt_features,
    reply_features,
)
from r2_serve.gates.table import MISSING, NO_ANSWER, Bools, Floats, Ints, OutcomeTable
from r2_serve.types import Record


class Gate(Record):
    """A fitted gate. It holds numbers and names alone, so that a JSON file holds all of it."""

    models: tuple[str, ...]
    """The models that the evidence weights know, in their order."""
    order: tuple[str, ...]
    """The models that are asked, the first one first."""
    rules: tuple[tuple[float, ...], ...]
    """The coefficients of what going on is worth, after each model but the last."""
    weights: tuple[float, ...]
    scales: Scales

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """A file whose numbers do not fit would fail every query."""
        size, num_replies, num_asks = len(self.models), len(REPLY_FEATURES), len(PROMPT_FEATURES)
        num_votes = len(ANSWER_FEATURES) + num_replies
        expected = {
            "models of the order": (len(set(self.order) & set(self.models)), max(1, len(self.order))),
            "rules": (len(self.rules), len(self.order) - 1),
            "weights": (
                len(self.weights),
                3 * size + NUM_COUNTS - 1 + num_votes + 2 + num_asks + num_replies,
            ),
            "scales of models": (len(self.scales.replies), size),
            **{
                f"numbers in rule {place}": (len(rule), 5 + num_replies + num_asks)
                for place, rule in enumerate(self.rules, 1)
            },
        }
        for what, (found, wanted) in expected.items():
            if found != wanted:
                raise ValueError(f"got {found} {what}, expected {wanted}: fit it anew")
        return self

    @property
    def reads_confidence(self) -> bool:
        """Whether the fitting replies told how sure their models were."""
        place = REPLY_FEATURES.index("confidence")
        return any(features[place][1] > 0 for features in self.scales.replies)


class FittedPolicy(Record):
    """What a fit gives: gates and the share of tasks that goes to each, or a model that answers alone."""

    reference: str
    gates: tuple[Gate, ...] = ()
    shares: tuple[float, ...] = ()
    expected_difference: float
    """The accuracy minus the reference's, on fitting tasks that the gates had not seen."""
    expected_cost_ratio: float | None
    """The cost divided by the reference's, on the same tasks; None if that costs nothing."""

    @property
    def order(self) -> str:
        """The models in the order in which they are asked, for people."""
        orders = dict.fromkeys(", then ".join(gate.order) for gate in self.gates)
        return "; or ".join(orders) or self.reference


@dataclass(frozen=True)
class Answers:
    """What a policy does on a table: one value for each task."""

    right: Floats
    """1 if the answer is right. A policy that draws lots has the probability of a right answer."""
    cost_usd: Floats
    asked: Floats
    """The number of models asked."""
    chance: Floats | None = None
    """The probability of a right answer as the policy sees it; None if it sees none."""

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())

    @property
    def mean_cost_usd(self) -> float:
        """The mean cost of a task."""
        return float(self.cost_usd.mean())

    def take(self, rows: Bools) -> Answers:
        """The same for these tasks alone."""
        chance = None if self.chance is None else self.chance[rows]
        return Answers(self.right[rows], self.cost_usd[rows], self.asked[rows], chance)


def without_silence(answers: Answers, has_reply: Bools) -> Answers:
    """The answers, where a task to which no model asked has a reply counts as the mean of the others."""
    if has_reply.all() or not has_reply.any():
        return answers

    def filled(values: Floats) -> Floats:
        return np.where(has_reply, values, values[has_reply].mean())

    chance = None if answers.chance is None else filled(answers.chance)
    return Answers(filled(answers.right), filled(answers.cost_usd), filled(answers.asked), chance)


@dataclass(frozen=True)
class State:
    """All tasks after one set of models was asked."""

    belief: Belief
    features: Floats
    """What the value of going on depends on, (T, features)."""


@dataclass
class States:
    """The states of a table's tasks, each computed once. Each task is judged by the weights of its fold."""

    evidence: Evidence
    cost_usd: Floats
    fold: Ints
    weights: Sequence[Weights]
    """The weights of each fold, fitted without its tasks."""
    _states: dict[frozenset[int], State] = field(default_factory=dict)

    @cached_property
    def utilities(self) -> Utilities:
        """The utilities of all tasks."""
        return Utilities.of(self.evidence, self.weights, self.fold)

    def after(self, asked: Collection[int]) -> State:
        """The state of all tasks after these models."""
        key = frozenset(asked)
        if key not in self._states:
            self._states[key] = self._judge(sorted(key))
        return self._states[key]

    def _judge(self, asked: list[int]) -> State:
        found = belief(self.utilities, asked)
        clipped = np.clip(found.chance, 0.01, 0.99)
        log_odds = np.log(clipped / (1 - clipped))
        ones = np.ones(len(clipped))
        asks = self.evidence.asks
        return State(found, np.column_stack([ones, found.chance, log_odds, found.features, asks]))


@dataclass(frozen=True)
class Chain:
    """An order with its rules, as columns of a table, and its value on the part it was fitted on."""

    order: tuple[int, ...]
    rules: tuple[Floats, ...]
    value: float
    """The mean probability of a right answer, less the mean cost at `value_per_usd`."""


def run_chain(states: States, chain: Chain) -> Answers:
    """Answer all tasks of the states."""
    size = len(states.cost_usd)
    is_open, right = np.ones(size, bool), np.zeros(size)
    cost, asked, chance = np.zeros(size), np.zeros(size), np.zeros(size)
    for stage, model in enumerate(chain.order):
        cost += np.where(is_open, states.cost_usd[:, model], 0.0)
        asked += is_open
        state = states.after(chain.order[: stage + 1])
        is_last = stage == len(chain.order) - 1
        stops = is_open if is_last else is_open & (state.belief.chance > state.features @ chain.rules[stage])
        right, chance = (
            np.where(stops, new, old)
            for new, old in ((state.belief.right, right), (state.belief.chance, chance))
        )
        is_open = is_open & ~stops
    has_reply = np.asarray((states.evidence.groups[:, list(chain.order)] != MISSING).any(axis=1))
    return without_silence(Answers(right, cost, asked, chance), has_reply)


def run_gate(gate: Gate, table: OutcomeTable) -> Answers:
    """Answer all tasks of a table by a gate. Raises: BookError if the table lacks one of its models."""
    table = table.only(gate.models)
    order = tuple(gate.models.index(model) for model in gate.order)
    return run_chain(_states(gate, table), Chain(order, tuple(map(np.array, gate.rules)), 0.0))


def _states(gate: Gate, table: OutcomeTable) -> States:
    """The states of a table that has the gate's models in their order."""
    evidence = Evidence.of(table, gate.scales)
    weights = Weights(
        np.array(gate.weights), len(gate.models), evidence.votes.shape[2], evidence.asks.shape[1]
    )
    return States(evidence, table.cost_usd, np.zeros(len(table), np.int64), [weights])


@dataclass(frozen=True)
class Said:
    """The reply of one model, as evidence."""

    reply: str
    answer: str | None
    """The answer in it; None if it has none."""
    group: int | None
    """Replies with equal answers have one number."""
    confidence: float | None = None


class Standing(NamedTuple):
    """What a gate makes of the replies so far."""

    stops: bool
    chance: float
    """The probability that the leading answer is right."""
    worth: float
    """What going on is worth; it stops where the chance is above that."""
    leader: str | None
    """The first model that gave the leading answer; None if no reply has an answer."""


def standing(gate: Gate, prompt: str, said: Mapping[str, Said], latest: str) -> Standing:
    """What the gate decides after `latest` was asked, by the same arithmetic as `run_gate`.

    `said` has the replies by model. Models before `latest` that are not in it gave none.
    """
    table = _one_task(gate, prompt, said)
    stage = gate.order.index(latest)
    order = [gate.models.index(model) for model in gate.order[: stage + 1]]
    state = _states(gate, table).after(order)
    chance, leader = float(state.belief.chance[0]), int(state.belief.leader[0])
    is_last = stage == len(gate.order) - 1
    worth = 0.0 if is_last else float((state.features @ np.array(gate.rules[stage]))[0])
    return Standing(is_last or chance > worth, chance, worth, gate.models[leader] if leader >= 0 else None)


def _one_task(gate: Gate, prompt: str, said: Mapping[str, Said]) -> OutcomeTable:
    """The table of one task that is not answered yet. Nothing is known of right and wrong, or of costs."""
    size = len(gate.models)
    groups, confidence = np.full((1, size), MISSING), np.full((1, size), np.nan)
    replies, answers = np.zeros((1, size, len(REPLY_FEATURES))), np.zeros((1, size, len(ANSWER_FEATURES)))
    for at, model in enumerate(gate.models):
        if (one := said.get(model)) is not None:
            groups[0, at] = NO_ANSWER if one.group is None else one.group
            confidence[0, at] = np.nan if one.confidence is None else one.confidence
            replies[0, at] = reply_features(one.reply, one.confidence)
            answers[0, at] = answer_features(one.answer)
    return OutcomeTable(
        tasks=("",),
        prompts=(prompt,),
        models=gate.models,
        groups=groups,
        right=np.zeros((1, size), bool),
        cost_usd=np.zeros((1, size)),
        confidence=confidence,
        propensity=np.full((1, size), np.nan),
        replies=replies,
        answers=answers,
        asks=np.array([prompt_features(prompt)]),
    )
