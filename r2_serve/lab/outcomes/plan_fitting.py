"""Fits `plan: auto`: from the prompt alone, whether a plan is worth its price.

Four numbers are predicted for each prompt: how probably the plan and the direct call are right (logistic
regression), the cost of the plan as a share of the direct call, and the length of the answer (ridge
regressions of logarithms). The features are TF-IDF of words and the size of the prompt. A query is planned if
the right answers that a plan gains, and the cost that it saves at `value` right answers a direct call, are
together above zero, and the plan is expected to cost less.

`value` is chosen on predictions for unseen folds: the cheapest that is as accurate as the more accurate way,
or, with a target, the last that passes its test, the dearest first, as in `goals`. A query that costs more
with a plan is never planned, so no kind of query is expected to cost more than the direct call and its share
for planning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from r2_serve.errors import BookError, counted
from r2_serve.gates.table import Bools, Floats
from r2_serve.lab.outcomes.both_ways import BothWays
from r2_serve.lab.outcomes.goals import TOLERANCE, Target
from r2_serve.lab.statistics import not_worse_p
from r2_serve.router.fitted_plan import FittedPlan, Line, sizes_of, terms_of

LEAST_PAIRS = 40
"""Tasks that a fit needs: each of the five folds has eight."""
NUM_FOLDS = 5
MOST_TERMS = 1_000
VALUES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 1e6)
"""Candidates for `value`; the last one plans whenever that is cheaper."""
PLANS_WITHIN = 0.975
"""Share of the plans that are no longer than predicted."""
_NO_PLANS = -1.0


@dataclass(frozen=True)
class PlanFit:
    """A fit and how its like did on tasks that it had not seen."""

    fit: FittedPlan
    expected_difference: float
    expected_cost_ratio: float
    expected_planned: float


@dataclass(frozen=True)
class _Candidate:
    value: float
    is_planned: Bools
    right: Floats
    usd: float


def fit_plan(pairs: Sequence[BothWays], target: Target | None = None, seed: int = 0) -> PlanFit:
    """Fit on tasks that were answered both ways.

    `target.model` is "planned" or "direct", the way whose accuracy counts; without a target it is the more
    accurate one. Raises: BookError for too few tasks, or another name.
    """
    if len(pairs) < LEAST_PAIRS:
        raise BookError(f"answered both ways: {counted(len(pairs), 'task')}; a fit needs {LEAST_PAIRS}")
    right = {"planned": _array(pairs, _planned_right), "direct": _array(pairs, _direct_right)}
    reference = max(right, key=lambda way: float(right[way].mean())) if target is None else target.model
    if reference not in right:
        raise BookError(f"the target names {reference!r}; it must be 'planned' or 'direct'")
    chosen = _choose(_candidates(pairs, right, seed), right[reference], target)
    direct_usd = float(_array(pairs, lambda pair: pair.direct_usd).sum())
    return PlanFit(
        fit=_fitted(pairs, chosen.value),
        expected_difference=float(chosen.right.mean() - right[reference].mean()),
        expected_cost_ratio=chosen.usd / direct_usd if direct_usd else 1.0,
        expected_planned=float(chosen.is_planned.mean()),
    )


def _candidates(pairs: Sequence[BothWays], right: dict[str, Floats], seed: int) -> list[_Candidate]:
    """What each value would do on tasks that its functions were fitted without."""
    gain, saved = np.zeros(len(pairs)), np.zeros(len(pairs))
    for seen, unseen in KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(pairs):
        fit = _fitted([pairs[i] for i in seen], value=0.0)
        for i in unseen:
            estimate = fit.estimate(pairs[i].prompt)
            gain[i], saved[i] = estimate.gain, 1 - estimate.cost_ratio
    planned_usd = _array(pairs, lambda pair: pair.planned_usd)
    direct_usd = _array(pairs, lambda pair: pair.direct_usd)

    def candidate(value: float) -> _Candidate:
        is_planned = (saved > 0) & (gain + value * saved > 0) & (value >= 0)
        usd = np.where(is_planned, planned_usd, direct_usd)
        answers = np.where(is_planned, right["planned"], right["direct"])
        return _Candidate(value, is_planned, answers, float(usd.sum()))

    return [candidate(value) for value in (_NO_PLANS, *VALUES)]


def _choose(candidates: Sequence[_Candidate], reference: Floats, target: Target | None) -> _Candidate:
    """The cheapest candidate that keeps to the reference; the most accurate one if none does."""
    dearest_first = sorted(candidates, key=lambda candidate: -candidate.usd)
    kept: list[_Candidate] = []
    for candidate in dearest_first:
        if target is None:
            if candidate.right.mean() >= reference.mean() - TOLERANCE:
                kept.append(candidate)
        elif not_worse_p(candidate.right, reference, target.margin) > 1 - target.confidence:
            break
        else:
            kept.append(candidate)
    return kept[-1] if kept else max(candidates, key=lambda c: (float(c.right.mean()), -c.usd))


def _fitted(pairs: Sequence[BothWays], value: float) -> FittedPlan:
    """All functions, fitted on all of `pairs`."""
    inputs = _Inputs.of([pair.prompt for pair in pairs])
    ratio = _array(pairs, lambda pair: _ratio(pair.planned_usd, pair.direct_usd))
    planning = [pair for pair in pairs if pair.planning_usd is not None and pair.plan_tokens]
    is_seen = len(planning) == len(pairs)
    share = _array(planning, lambda pair: _ratio(pair.planning_usd or 0.0, pair.direct_usd))
    lengths = [length for pair in pairs for length in pair.step_tokens]
    return FittedPlan(
        idf=inputs.idf,
        planned_right=inputs.log_odds(_array(pairs, _planned_right)),
        direct_right=inputs.log_odds(_array(pairs, _direct_right)),
        cost_ratio=inputs.log_line(ratio),
        answer_tokens=inputs.log_line(_array(pairs, lambda pair: max(1, pair.answer_tokens))),
        planning_share=inputs.log_line(share) if is_seen else None,
        plan_tokens=(
            inputs.log_line(_array(planning, lambda pair: pair.plan_tokens or 1), within=PLANS_WITHIN)
            if is_seen
            else None
        ),
        step_tokens=max(1, round(float(np.mean(lengths)))) if lengths else None,
        value=value,
    )


@dataclass(frozen=True)
class _Inputs:
    """The features of the prompts, in the order of a `Line`'s weights."""

    idf: dict[str, float]
    matrix: Floats
    """(N, terms + sizes), the sizes with mean 0 and variance 1."""
    scaler: StandardScaler

    @classmethod
    def of(cls, prompts: Sequence[str]) -> _Inputs:
        vectorizer = TfidfVectorizer(analyzer=terms_of, max_features=MOST_TERMS, sublinear_tf=True)
        scaler = StandardScaler()
        sizes = scaler.fit_transform(np.array([sizes_of(prompt) for prompt in prompts]))
        try:
            words = vectorizer.fit_transform(prompts)
        except ValueError:  # no prompt has a word
            return cls({}, sizes, scaler)
        names = vectorizer.get_feature_names_out()
        idf = dict(zip(map(str, names), map(float, vectorizer.idf_), strict=True))
        return cls(idf, np.hstack([words.toarray(), sizes]), scaler)

    def log_odds(self, right: Floats) -> Line:
        """The log-odds of a right answer. Where all are right or none is, a constant."""
        if right.min() == right.max():
            odds = (right.sum() + 1) / (len(right) - right.sum() + 1)
            return self._line(np.zeros(self.matrix.shape[1]), math.log(odds))
        model = LogisticRegression(max_iter=1_000).fit(self.matrix, right > 0.5)
        return self._line(model.coef_[0], float(model.intercept_[0]))

    def log_line(self, values: Floats, within: float | None = None) -> Line:
        """The logarithm of the expected value, or of one that a share of the values does not exceed."""
        model = Ridge(alpha=1.0).fit(self.matrix, np.log(values))
        rest = np.log(values) - model.predict(self.matrix)
        shift = np.log(np.exp(rest).mean()) if within is None else np.quantile(rest, within)
        return self._line(model.coef_, float(model.intercept_ + shift))

    def _line(self, weights: Floats, intercept: float) -> Line:
        """The function with sizes as they are, not scaled."""
        num_terms = len(self.idf)
        sizes = weights[num_terms:] / self.scaler.scale_
        return Line(
            intercept=intercept - float(sizes @ self.scaler.mean_),
            terms=tuple(float(f"{weight:.6g}") for weight in weights[:num_terms]),
            sizes=tuple(map(float, sizes)),
        )


def _array(pairs: Sequence[BothWays], read: Callable[[BothWays], float]) -> Floats:
    return np.array([float(read(pair)) for pair in pairs])


def _planned_right(pair: BothWays) -> float:
    return pair.planned_right


def _direct_right(pair: BothWays) -> float:
    return pair.direct_right


def _ratio(usd: float, direct_usd: float) -> float:
    """A ratio of costs; a direct call without a cost leaves nothing to save."""
    return max(usd / direct_usd, 1e-6) if direct_usd > 0 else 2.0
