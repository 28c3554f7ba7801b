"""Fits of small and odd books: simple gates, and what is never chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2_serve.errors import BookError
from r2_serve.gates.fitted import run_gate
from r2_serve.gates.table import MISSING, NO_ANSWER, OutcomeTable
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.lab.outcomes.fitting import fit
from r2_serve.lab.outcomes.goals import choose, fit_policy, run_policy
from r2_serve.lab.outcomes.grading import graded
from r2_serve.lab.outcomes.importing import Source, grader_of, priced, read_prices, recorded
from r2_serve.lab.outcomes.replay import replay
from r2_serve.lab.outcomes.simple import all_orders, counting_gate, until_two_agree
from r2_serve.lab.outcomes.table import table_of
from tests.lab.outcomes import books


def table(tmp_path: Path, num_tasks: int = 120, **options: float) -> OutcomeTable:
    prices = read_prices(books.write_prices(tmp_path / "prices.yaml"))
    path = books.write(tmp_path / "rows.jsonl", books.lines(num_tasks, **options))  # type: ignore[arg-type]
    return table_of(graded([priced(record, prices) for record in recorded(Source(path))], "number"))


def at_cost(found: OutcomeTable, usd: float) -> OutcomeTable:
    return replace(found, cost_usd=np.where(found.is_asked, usd, 0.0))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_simple_gate_in_a_file_does_what_asking_until_two_agree_does(tmp_path: Path, missing: float) -> None:
    found = table(tmp_path, missing=missing)
    for order in all_orders(found):
        wanted, gate = until_two_agree(found, order), counting_gate(found, order)
        got = run_gate(gate, found)
        assert np.allclose(got.right, wanted.right)
        assert np.allclose(got.cost_usd, wanted.cost_usd)
        assert got.chance is not None and abs(got.chance.mean() - wanted.accuracy) < 0.2


@pytest.mark.parametrize("reference", ["tiny", "large"])
@pytest.mark.parametrize("usd", [0.0, 0.001])
def test_nothing_dearer_than_the_reference_is_chosen_at_equal_prices(
    tmp_path: Path, reference: str, usd: float
) -> None:
    found = at_cost(table(tmp_path), usd)
    policy = fit_policy(found, reference)
    assert run_policy(policy, found).mean_cost_usd <= 1.05 * usd
    assert policy.expected_cost_ratio is None if usd == 0 else policy.expected_cost_ratio <= 1
    assert policy.expected_difference > -0.01


def test_free_models_are_all_used_for_more_right_answers(tmp_path: Path) -> None:
    found = at_cost(table(tmp_path, 300), 0.0)
    assert fit_policy(found, "small").expected_difference > 0.03


def test_one_model_alone_is_its_own_policy(tmp_path: Path) -> None:
    found = replay(table(tmp_path, 40).only(["large"]), num_splits=1)
    assert found.splits[0].policy.order == "large"


def test_missing_replies_of_the_reference_count_for_nothing(tmp_path: Path) -> None:
    found = table(tmp_path, 200)
    holes = np.arange(200) % 3 == 0
    groups = found.groups.copy()
    groups[holes, found.place("large")] = MISSING
    right = found.right & (groups != MISSING)
    cost = np.where(groups == MISSING, 0.0, found.cost_usd)
    report = replay(
        replace(found, groups=groups, right=right, cost_usd=cost), reference="large", num_splits=1
    )
    assert (len(report.book), len(report.table)) == (200, int((~holes).sum()))
    assert report.table.accuracy[found.place("large")] > 0.85


def test_tasks_with_one_prompt_are_in_one_half_and_one_fold(tmp_path: Path) -> None:
    found = table(tmp_path, 60)
    doubled = replace(found, prompts=tuple(f"p{i // 2}" for i in range(60)))
    first, second = doubled.halves(0)
    assert (len(first), len(second)) == (30, 30)
    assert not set(first // 2) & set(second // 2)
    folds = doubled.folds(5, 0)
    assert (folds[::2] == folds[1::2]).all()


def test_a_book_of_one_prompt_is_refused(tmp_path: Path) -> None:
    found = replace(table(tmp_path, 60), prompts=("Answer.",) * 60)
    with pytest.raises(BookError, match="60 tasks with a reply of 'large' and 1 prompts; a replay needs"):
        replay(found, reference="large")
    with pytest.raises(BookError, match="all 60 tasks have one prompt"):
        fit_policy(found, "large")


def test_halves_of_distinct_prompts_are_halves_of_a_random_order(tmp_path: Path) -> None:
    found = table(tmp_path, 60)
    order = np.random.default_rng(3).permutation(60)
    assert (found.halves(3)[0] == np.sort(order[:30])).all()


def test_right_answers_that_were_judged_and_not_read_do_not_agree() -> None:
    judged = [Outcome(task="t", model=model, reply=model, right=model != "c") for model in "abc"]
    read = [Outcome(task="u", model="a", gold="4", group=0, right=True)]
    empty = [Outcome(task="u", model="b", gold="4", right=False)]
    ungraded = [Outcome(task="u", model="c")]
    groups = table_of([*judged, *read, *empty, *ungraded]).groups
    assert len(set(groups[0])) == 3 and (groups[0] >= 0).all()
    assert list(groups[1]) == [0, NO_ANSWER, MISSING]


def test_fit_survives_answers_of_which_none_agree(tmp_path: Path) -> None:
    found = table(tmp_path)
    alone = np.where(found.groups >= 0, np.arange(len(found.models)), found.groups)
    policy = choose(fit(replace(found, groups=alone)), "large")
    assert np.isfinite([weight for gate in policy.gates for weight in gate.weights]).all()
    assert policy.expected_cost_ratio is not None and policy.expected_cost_ratio <= 1


@pytest.mark.parametrize(
    ("benchmark", "grader"),
    [
        ("mmlu-astronomy", "choice"),
        ("arc-challenge", "choice"),
        ("grade-school-math", "number"),
        ("mbpp", "text"),
    ],
)
def test_answers_of_routerbench_are_read_by_their_benchmark(benchmark: str, grader: str) -> None:
    assert grader_of(benchmark) == grader
