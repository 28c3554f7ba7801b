"""What a model would have reached where a book holds only the reply of the model that was asked.

Each task was sent to one model, drawn with a known probability (`propensity`). A reply of the model in
question counts for all tasks that it stands for, so it is weighed by 1 / propensity:

- The inverse-propensity estimate is the weighted mean of what was observed, divided by the sum of weights.
- The doubly robust estimate is the mean of a prediction for every task, plus the weighted mean of how far the
  prediction was off where the model was asked. It is right if the propensities or the predictions are.

The effective sample size is (sum of weights)^2 / (sum of squared weights): so many equally weighted replies
would say as much. Sources: Horvitz and Thompson, JASA 47, 1952; Dudík, Langford and Li, "Doubly robust policy
evaluation and learning", 2011; Kish, Survey Sampling, 1965.
"""

from __future__ import annotations

import math

import numpy as np

from r2_serve.errors import BookError
from r2_serve.gates.table import Bools, Floats, OutcomeTable
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.types import Record

LEAST_EFFECTIVE = 30.0
"""A smaller effective sample says too little: the normal interval no longer holds."""
MOST_DEVIATIONS = 4.0
"""Standard deviations by which a model's weights may miss the number of tasks."""
NUM_FOLDS = 5
_RIDGE = 1.0


class Estimate(Record):
    """A mean and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


class ModelEstimate(Record):
    """One model, as if it had answered every task."""

    model: str
    num_replies: int
    effective_sample: float
    refused: str | None = None
    """The reason why nothing is estimated; None if something is."""
    accuracy_ips: Estimate | None = None
    accuracy_dr: Estimate | None = None
    cost_usd_dr: Estimate | None = None
    """The cost of a task."""


class Estimates(Record):
    """All models of a book with one reply for each task."""

    tasks: int
    models: tuple[ModelEstimate, ...]


def with_verdicts(records: list[Outcome]) -> list[Outcome]:
    """The records to replay: of a book of served traffic, those that were rated; of others, all of them."""
    is_served = any(record.propensity is not None for record in records)
    rated = [record for record in records if record.right is not None] if is_served else records
    if not rated:
        raise BookError("the book holds no rated reply: clients rate answers by POST /v1/r2/feedback")
    return rated


def holds_choices(table: OutcomeTable) -> bool:
    """Whether the book holds one reply for each task, with the probability of that choice."""
    is_one = bool((table.is_asked.sum(axis=1) == 1).all())
    return is_one and not np.isnan(table.propensity[table.is_asked]).any()


def estimates(table: OutcomeTable, seed: int = 0) -> list[ModelEstimate]:
    """Estimate every model of a book with one reply for each task. Raises: BookError for another book."""
    if not holds_choices(table):
        raise BookError("the book does not hold one reply for each task with its propensity")
    return [_estimate(table, model, seed) for model in range(len(table.models))]


def _estimate(table: OutcomeTable, model: int, seed: int) -> ModelEstimate:
    asked = table.is_asked[:, model]
    weights = np.where(asked, 1 / np.where(asked, table.propensity[:, model], 1.0), 0.0)
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if asked.any() else 0.0
    known = ModelEstimate(model=table.models[model], num_replies=int(asked.sum()), effective_sample=effective)
    if effective < LEAST_EFFECTIVE:
        reason = f"the effective sample is {effective:.0f} replies; at least {LEAST_EFFECTIVE:.0f} are needed"
        return known.model_copy(update={"refused": reason})
    if (bias := _why_biased(table.propensity[asked, model], len(table))) is not None:
        return known.model_copy(update={"refused": bias})
    right, cost = table.right[:, model].astype(float), table.cost_usd[:, model]
    return known.model_copy(
        update={
            "accuracy_ips": inverse_propensity(right, weights),
            "accuracy_dr": doubly_robust(right, weights, _predicted(table, right, asked, seed)),
            "cost_usd_dr": doubly_robust(cost, weights, _predicted(table, cost, asked, seed)),
        }
    )


def _why_biased(propensity: Floats, num_tasks: int) -> str | None:
    """Why the replies do not stand for all tasks; None if they may.

    The weights of a model that every task can draw add up to the number of tasks, but for chance. A model
    that a rule gives some tasks and not others has no reply to the others, which no weight can replace.
    """
    total = float((1 / propensity).sum())
    deviation = math.sqrt(float(((1 - propensity) / propensity**2).sum()))
    if abs(total - num_tasks) <= MOST_DEVIATIONS * deviation + 1e-6 * num_tasks:
        return None
    return (
        f"its replies stand for {total:.0f} of {num_tasks} tasks: the choice was not drawn at random for all "
        "of them (serve with a policy such as random:A=0.9,B=0.1)"
    )


def inverse_propensity(values: Floats, weights: Floats) -> Estimate:
    """The self-normalised estimate; its interval is that of a ratio of means."""
    mean = float((weights * values).sum() / weights.sum())
    return _with_interval(mean, weights * (values - mean) / weights.mean())


def doubly_robust(values: Floats, weights: Floats, predicted: Floats) -> Estimate:
    """The doubly robust estimate with predictions that were made without the task itself."""
    parts = predicted + weights * (values - predicted)
    mean = float(parts.mean())
    return _with_interval(mean, parts - mean)


def _with_interval(mean: float, influence: Floats) -> Estimate:
    half = 1.96 * float(influence.std()) / math.sqrt(len(influence))
    return Estimate(value=mean, ci95=(mean - half, mean + half))


def _predicted(table: OutcomeTable, values: Floats, asked: Bools, seed: int) -> Floats:
    """The value that the prompt's features predict, by ridge regression on the other folds."""
    features = np.column_stack([np.ones(len(table)), table.asks - table.asks.mean(axis=0)])
    penalty = np.diag([1e-6, *[_RIDGE] * (features.shape[1] - 1)])
    fold = np.random.default_rng(seed).permutation(len(table)) % NUM_FOLDS
    found = np.zeros(len(table))
    for k in range(NUM_FOLDS):
        rows = asked & (fold != k)
        known = features[rows]
        slope = np.linalg.solve(known.T @ known + penalty, known.T @ values[rows])
        found[fold == k] = features[fold == k] @ slope
    return found
