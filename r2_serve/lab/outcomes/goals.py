"""What a fit is to reach: the reference's accuracy as expected, or a promise that is kept with confidence.

Without a target, the cheapest gate is taken whose accuracy on unseen fitting tasks is the reference's, with a
margin where the tasks are few. It lies between two candidates, so it is a mix of both: a fixed share of the
tasks goes to each. Candidates are fitted gates, simple gates (`simple`) and the reference itself.

With a target ("within 1 point of gpt-4o"), candidates are tested one after the other, the dearest first, and
the test stops at the first that fails: fixed-sequence testing, so no correction for many tests is needed
(Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test", 2021, section 3). The test is Tango's score test
of paired shares (Statistics in Medicine 17, 1998). It looks at the answers that each candidate's like gave to
unseen folds (Bayle, Bayle, Janson, Mackey, "Cross-validation confidence intervals for test error", 2020),
since a part of the book that is set aside for tests alone would make both parts small. The reference itself
always keeps the promise, and is taken if no candidate does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2_serve.errors import BookError
from r2_serve.gates.fitted import Answers, FittedPolicy, run_gate
from r2_serve.gates.table import Floats, OutcomeTable
from r2_serve.lab.outcomes.fitting import Candidate, Fit, fit
from r2_serve.lab.outcomes.simple import SimpleCandidate
from r2_serve.lab.statistics import not_worse_p

AnyCandidate = Candidate | SimpleCandidate
_TARGET = re.compile(r"(?i)\s*within\s+(\d+(?:\.\d+)?)\s*(?:%|percent|points?|pp)?\s+of\s+(\S+)\s*")
NUM_COARSE, NUM_HALVINGS = 7, 4
"""Prices over the whole range, and further ones where the reference's accuracy is crossed."""
TOLERANCE = 0.0005
"""A gate reaches an accuracy that it misses by less than this: 0.05 points is one task in 2,000."""
MOST_CAUTION, MANY_TASKS = 0.75, 600
"""The margin falls evenly from this many standard errors, for a book without tasks, to none for this many
tasks: 0.6 for 120 tasks, 0.3 for 360."""
SIMPLE_CAUTION = 2.0
"""The margin of a simple gate is so many times as wide: its accuracy is measured alone, and not expected by
the posterior too, so it has about twice the error."""
NUM_TESTED = 12
"""Candidates in the sequence of tests."""


@dataclass(frozen=True)
class Target:
    """A promise: the accuracy is at most `margin` below the model's, with this confidence."""

    margin: float
    """A fraction: 0.01 is one point."""
    model: str
    confidence: float

    @property
    def text(self) -> str:
        """The promise in words."""
        return f"within {100 * self.margin:g} points of {self.model}"


def parse_target(text: str, confidence: float) -> Target:
    """Read "within 1 point of gpt-4o". Raises: BookError."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise BookError(f"target {text!r} is not of the form 'within 1 point of MODEL'")
    if not 0.5 <= confidence < 1:
        raise BookError(f"--confidence is {confidence:g}; it must be at least 0.5 and below 1")
    return Target(float(match[1]) / 100, match[2], confidence)


def run_policy(policy: FittedPolicy, table: OutcomeTable) -> Answers:
    """Answer all tasks of a table; a mix gives the mean of its gates. Raises: BookError."""
    if not policy.gates:
        model = table.place(policy.reference)
        right, cost = table.expected_right[:, model], table.expected_cost_usd[:, model]
        return Answers(right, cost, np.ones(len(table)))
    return mixed([run_gate(gate, table) for gate in policy.gates], policy.shares)


def mixed(parts: Sequence[Answers], shares: Sequence[float]) -> Answers:
    """The expected answers if each task goes to a part at random, with these shares."""

    def mean(values: Sequence[Floats]) -> Floats:
        return np.asarray(sum(share * value for share, value in zip(shares, values, strict=True)))

    return Answers(
        mean([part.right for part in parts]),
        mean([part.cost_usd for part in parts]),
        mean([part.asked for part in parts]),
    )


def fit_policy(
    table: OutcomeTable, reference: str, target: Target | None = None, seed: int = 0
) -> FittedPolicy:
    """Fit the cheapest policy that reaches the reference, or keeps the promise. Raises: BookError."""
    return choose(fit(table.with_reply_of(reference), seed), reference, target)


def choose(found: Fit, reference: str, target: Target | None = None) -> FittedPolicy:
    """Choose among the candidates of a fit. Raises: BookError if its table lacks the reference."""
    table, at = found.table, found.table.place(reference)
    right, cost = table.right[:, at].astype(float), float(table.cost_usd[:, at].mean())
    alone = SimpleCandidate((at,), Answers(right, table.cost_usd[:, at], np.ones(len(table))))
    if target is None:
        picks = cheapest_mix([*_near(found, right), *found.simple], alone)
    else:
        kept = last_proven(found.grid(NUM_TESTED), right, target)
        picks = [(alone if kept is None or kept.unseen.mean_cost_usd > cost else kept, 1.0)]
    shares = [share for _, share in picks]
    unseen = mixed([candidate.unseen for candidate, _ in picks], shares)
    is_alone = [candidate for candidate, _ in picks] == [alone]
    return FittedPolicy(
        reference=reference,
        gates=() if is_alone else tuple(found.gate(candidate) for candidate, _ in picks),
        shares=() if is_alone else tuple(shares),
        expected_difference=unseen.accuracy - float(right.mean()),
        expected_cost_ratio=unseen.mean_cost_usd / cost if cost else None,
    )


def most_accurate(found: Fit) -> Candidate:
    """The candidate for which cost hardly matters."""
    return found.candidate(found.prices[0])


def _near(found: Fit, right: Floats) -> list[Candidate]:
    """Candidates over all prices, and more of them where the reference's accuracy is crossed."""
    candidates = found.grid(NUM_COARSE)
    for _ in range(NUM_HALVINGS):
        reach = [lower_bound(candidate, right) >= -TOLERANCE for candidate in candidates]
        if not any(reach) or all(reach):
            break
        last = max(i for i, reaches in enumerate(reach) if reaches)
        if last + 1 == len(candidates):
            break
        prices = [candidate.value_per_usd for candidate in candidates[last : last + 2]]
        candidates.insert(last + 1, found.candidate(math.sqrt(prices[0] * prices[1])))
    return candidates


def cheapest_mix(
    candidates: Sequence[AnyCandidate], alone: SimpleCandidate
) -> list[tuple[AnyCandidate, float]]:
    """The cheapest mix of at most two candidates, or the reference `alone`, that reaches its accuracy.

    Of equal costs, the more accurate one. The reference is a candidate, so no mix costs more than it does.
    """
    options: list[tuple[AnyCandidate, float, float]] = [(alone, 0.0, alone.unseen.mean_cost_usd)]
    options += [(c, lower_bound(c, alone.unseen.right), c.unseen.mean_cost_usd) for c in candidates]
    highs = [option for option in options if option[1] >= -TOLERANCE]
    picked, high, dear = min(highs, key=lambda option: (_rounded(option[2]), -option[1]))
    best, picks = dear, [(picked, 1.0)]
    for candidate, high, dear in highs:
        for other, low, cheap in options:
            if low < -TOLERANCE and cheap < dear:
                share = (-TOLERANCE - low) / (high - low)
                if _rounded(cost := share * dear + (1 - share) * cheap) < _rounded(best):
                    best, picks = cost, [(candidate, share), (other, 1 - share)]
    return picks


def _rounded(cost_usd: float) -> float:
    """A cost without the noise of its last digits."""
    return float(f"{cost_usd:.9g}")


def lower_bound(candidate: AnyCandidate, reference: Floats) -> float:
    """What the accuracy beyond the reference's is taken to be: as expected, less a margin.

    The cheapest candidate that seems to reach an accuracy is one that was lucky, and the more so the fewer
    tasks there are. The margin is a part of the standard error of the paired difference, which shrinks with
    their number. Half a win is added to the variance, so that a few equal verdicts prove nothing.
    """
    num, difference = len(reference), candidate.unseen.right - reference
    error = math.sqrt(float(difference.var()) / num + 0.5 / num**2)
    caution = MOST_CAUTION * max(0.0, 1 - num / MANY_TASKS)
    if isinstance(candidate, SimpleCandidate):
        caution *= SIMPLE_CAUTION
    return expected_accuracy(candidate) - float(reference.mean()) - caution * error


def expected_accuracy(candidate: AnyCandidate) -> float:
    """The accuracy on unseen tasks: the mean of what was right and of what the posterior expects.

    The first has no bias and much noise, the second little noise and some bias. A simple gate expects
    nothing.
    """
    unseen = candidate.unseen
    expected = unseen.accuracy if unseen.chance is None else float(unseen.chance.mean())
    return (unseen.accuracy + expected) / 2


def last_proven(candidates: Sequence[Candidate], reference: Floats, target: Target) -> Candidate | None:
    """The last candidate before the first that fails its test, the dearest first; None if the first fails."""
    kept = None
    for candidate in sorted(candidates, key=lambda c: -c.unseen.mean_cost_usd):
        if not_worse_p(candidate.unseen.right, reference, target.margin) > 1 - target.confidence:
            break
        kept = candidate
    return kept
