"""The statistics of comparisons: intervals, tests, and what they say on data of known kind."""

from __future__ import annotations

import numpy as np
import pytest

from r2_serve.lab.statistics import (
    MARGIN,
    difference_interval,
    holm,
    mcnemar_p,
    mean_interval,
    not_worse_p,
    paired,
    ratio_interval,
    wilson,
)


def marks(num_right: int, num_tasks: int = 100) -> np.typing.NDArray[np.float64]:
    return (np.arange(num_tasks) < num_right).astype(float)


ONES, ZEROS = np.ones(20), np.zeros(20)


@pytest.mark.parametrize(("num_correct", "num_tasks"), [(50, 100), (180, 200), (7, 40)])
def test_interval_is_that_of_resampled_tasks(num_correct: int, num_tasks: int) -> None:
    known = marks(num_correct, num_tasks)
    resampled = [np.mean(np.random.default_rng(i).choice(known, num_tasks)) for i in range(2000)]
    expected = np.percentile(resampled, [2.5, 97.5])
    assert mean_interval(known) == pytest.approx(expected, abs=1.6 / num_tasks)


def test_interval_is_not_empty_when_all_answers_are_alike() -> None:
    assert mean_interval(ONES) == (pytest.approx(0.839, abs=0.001), 1.0)
    assert mean_interval(ZEROS) == (0.0, pytest.approx(0.161, abs=0.001))
    assert difference_interval(ONES, ZEROS) == (pytest.approx(0.839, abs=0.001), 1.0)
    assert difference_interval(ZEROS, ONES) == (-1.0, pytest.approx(-0.839, abs=0.001))
    assert difference_interval(ONES, ONES) == (
        pytest.approx(-0.161, abs=0.001),
        pytest.approx(0.161, abs=0.001),
    )


def test_paired_interval_is_narrower_where_errors_are_shared() -> None:
    ours, same, crossed = marks(60), marks(55), marks(55)[::-1]
    (low, high), (crossed_low, crossed_high) = (
        difference_interval(ours, same),
        difference_interval(ours, crossed),
    )
    assert high - low < (crossed_high - crossed_low) / 2
    assert low < 0.05 < high


def test_interval_of_a_ratio_holds_the_truth_and_is_none_for_a_free_policy() -> None:
    costs = np.random.default_rng(0).exponential(size=400)
    bounds = ratio_interval(costs, 2 * costs + 0.01)
    assert bounds is not None
    assert bounds[0] < costs.mean() / (2 * costs + 0.01).mean() < bounds[1]
    assert bounds[1] - bounds[0] < 0.01  # the costs go together
    assert ratio_interval(costs, np.zeros(400)) is None


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 0.021484375), (0, 6, 0.03125), (30, 12, 0.00792)],
)
def test_mcnemars_test_is_the_sign_test_of_discordant_tasks(wins: int, losses: int, p: float) -> None:
    assert mcnemar_p(wins, losses) == pytest.approx(p, rel=0.002)
    assert mcnemar_p(losses, wins) == mcnemar_p(wins, losses)


def test_policy_is_not_worse_only_where_the_tasks_are_enough_to_tell() -> None:
    """Both have the same errors but one for each hundred tasks, which go both ways."""
    few, many = marks(90, 100), marks(4500, 5000)
    assert not_worse_p(few, few, MARGIN) > 0.025
    assert not_worse_p(many, many, MARGIN) < 0.025
    assert not_worse_p(many, marks(4600, 5000), MARGIN) > 0.9


def compare(ours: int, theirs: int, num_tasks: int) -> str:
    costs = np.ones(num_tasks)
    return paired(marks(ours, num_tasks), marks(theirs, num_tasks), costs, 2 * costs).verdict


def test_verdict_names_what_the_tasks_show() -> None:
    assert compare(600, 500, 1000) == "better"
    assert compare(500, 600, 1000) == "worse"
    assert compare(95, 96, 100) == "undecided"
    assert compare(4700, 4700, 5000) == "not worse"


def test_loss_that_is_proven_but_below_the_margin_is_not_worse() -> None:
    """12 of 5,000 tasks are lost and none is won: worse beyond chance, and by far less than one point."""
    found = paired(marks(4500, 5000), marks(4512, 5000), np.ones(5000), np.ones(5000))
    assert found.mcnemar_p is not None
    assert found.mcnemar_p < 0.001
    assert found.verdict == "not worse"


def test_costs_are_compared_with_interval_and_p() -> None:
    costs = np.random.default_rng(1).exponential(size=300)
    found = paired(marks(200, 300), marks(200, 300), costs, costs * 1.25 + 0.01)
    assert found.cost_ratio == pytest.approx(0.8, abs=0.02)
    assert found.cost_ratio_ci95 is not None
    assert found.cost_ratio_ci95[0] < found.cost_ratio < found.cost_ratio_ci95[1] < 1
    assert found.cost_difference_ci95_usd[1] < 0
    assert found.cost_p < 0.001
    same = paired(marks(9, 300), marks(9, 300), costs, costs)
    assert (same.cost_p, same.cost_ratio) == (1.0, 1.0)


def test_means_over_seeds_have_a_bootstrap_p_and_no_mcnemar() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.integers(2, 4, 400) / 3, rng.integers(0, 4, 400) / 3
    found = paired(ours, theirs, np.ones(400), np.ones(400))
    assert found.mcnemar_p is None
    assert found.bootstrap_p < 0.001
    assert found.verdict == "better"


@pytest.mark.parametrize("difference", [0, 12])
def test_bootstrap_and_mcnemar_agree(difference: int) -> None:
    ours = np.r_[np.ones(40 + difference), np.zeros(40), np.ones(220 - difference)]
    theirs = np.r_[np.zeros(40 + difference), np.ones(40), np.ones(220 - difference)]
    found = paired(ours, theirs, np.ones(300), np.ones(300))
    assert found.mcnemar_p is not None
    assert found.bootstrap_p == pytest.approx(found.mcnemar_p, abs=0.15)


def test_false_alarms_of_the_interval_are_as_rare_as_stated() -> None:
    """Two policies of equal skill: about 5 of 100 intervals leave 0 out."""
    rng = np.random.default_rng(3)
    draws = [(rng.random(200) < 0.8).astype(float) for _ in range(400)]
    pairs = zip(draws[::2], draws[1::2], strict=True)
    missed = sum(not low <= 0 <= high for low, high in (difference_interval(a, b) for a, b in pairs))
    assert 2 <= missed <= 20


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_wilson_is_the_published_interval() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=0.0002)  # Newcombe 1998, table I
