"""A fit on few tasks must be better than the reference by a margin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r2_serve.gates.fitted import Answers, Chain
from r2_serve.lab.outcomes.fitting import Candidate
from r2_serve.lab.outcomes.goals import MANY_TASKS, expected_accuracy, lower_bound
from r2_serve.lab.outcomes.simple import SimpleCandidate


def candidate(num_tasks: int) -> SimpleCandidate:
    right = np.tile([1.0, 1.0, 0.0, 1.0], num_tasks // 4)
    return SimpleCandidate((0, 1), Answers(right, np.ones(num_tasks), np.ones(num_tasks)))


def margin(num_tasks: int) -> float:
    reference = np.tile([1.0, 0.0, 1.0, 1.0], num_tasks // 4)
    one = candidate(num_tasks)
    return expected_accuracy(one) - float(reference.mean()) - lower_bound(one, reference)


def test_what_is_measured_alone_has_twice_the_margin_of_what_is_expected_too() -> None:
    simple, reference = candidate(200), np.tile([1.0, 0.0, 1.0, 1.0], 50)
    answers = replace(simple.unseen, chance=simple.unseen.right)
    fitted = Candidate(1.0, Chain((0, 1), (), 0.0), (), answers)
    assert lower_bound(simple, reference) == pytest.approx(2 * lower_bound(fitted, reference))


def test_margin_falls_with_the_number_of_tasks_and_ends() -> None:
    assert margin(40) > margin(200) > margin(400) > 0
    assert margin(MANY_TASKS) == pytest.approx(0)
