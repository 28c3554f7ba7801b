"""A fit of `plan: auto` finds on its own which prompts gain from a plan, and keeps what it promises."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from r2_serve.errors import BookError
from r2_serve.lab.evaluation.planned_rows import read_both_ways
from r2_serve.lab.outcomes.book import Outcome, write_book
from r2_serve.lab.outcomes.both_ways import BothWays
from r2_serve.lab.outcomes.goals import Target
from r2_serve.lab.outcomes.plan_fitting import fit_plan
from r2_serve.router.fitted_plan import terms_of

WORDS = ("river", "bridge", "summit", "valley", "harbour", "meadow")


def pairs_of(count: int, seed: int = 0) -> list[BothWays]:
    """Long prompts that say "compare" are right with a plan only; short ones cost three times as much."""
    draw, found = random.Random(seed), []
    for i in range(count):
        is_long = draw.random() < 0.5
        prompt = " ".join(draw.choices(WORDS, k=60 if is_long else 5)) + (" compare" if is_long else "")
        found.append(
            BothWays(
                task=str(i),
                prompt=prompt,
                planned_right=draw.random() < 0.95,
                direct_right=draw.random() < (0.3 if is_long else 0.95),
                planned_usd=0.5 if is_long else 3.0,
                direct_usd=1.0,
                answer_tokens=200 if is_long else 10,
                planning_usd=0.05 if is_long else 0.4,
                plan_tokens=40,
                step_tokens=(8, 12),
            )
        )
    return found


def test_only_prompts_that_gain_from_a_plan_are_planned() -> None:
    found, unseen = fit_plan(pairs_of(300)), pairs_of(200, seed=1)
    estimates = [found.fit.estimate(pair.prompt) for pair in unseen]
    planned = [found.fit.is_worth_it(estimate) for estimate in estimates]
    assert planned == [pair.answer_tokens == 200 for pair in unseen]
    assert found.expected_cost_ratio < 0.8
    assert found.expected_difference >= -0.03
    assert found.fit.step_tokens == 10
    for pair, estimate in zip(unseen, estimates, strict=True):
        assert estimate.answer_tokens == pytest.approx(pair.answer_tokens, rel=0.3)
        assert estimate.planning_share == pytest.approx(pair.planning_usd, rel=0.3)


def test_prompt_that_costs_more_with_a_plan_is_not_planned_at_any_gain() -> None:
    dear = [replace(pair, planned_usd=1.2, direct_right=False) for pair in pairs_of(100)]
    found = fit_plan(dear)
    assert found.expected_planned == 0 and found.expected_cost_ratio == 1


def test_target_names_the_way_and_the_margin_that_count() -> None:
    even = [
        replace(pair, planned_usd=0.2, direct_right=True, planned_right=i % 20 != 0)
        for i, pair in enumerate(pairs_of(400))
    ]
    strict = fit_plan(even, Target(0.001, "direct", 0.95))
    loose = fit_plan(even, Target(0.10, "direct", 0.95))
    assert strict.expected_planned < 0.2
    assert loose.expected_planned == 1 and loose.expected_cost_ratio == pytest.approx(0.2)
    with pytest.raises(BookError, match="'planned' or 'direct'"):
        fit_plan(even, Target(0.1, "gpt-4o", 0.95))


def test_too_few_tasks_are_refused() -> None:
    with pytest.raises(BookError, match="a fit needs 40"):
        fit_plan(pairs_of(39))


def test_ways_that_are_always_right_or_never_are_fitted() -> None:
    same = [replace(pair, planned_right=True, direct_right=False, planned_usd=0.5) for pair in pairs_of(60)]
    assert fit_plan(same).expected_planned == 1


def test_serving_reads_words_as_scikit_learn_does() -> None:
    pairs = pairs_of(80)
    fit = fit_plan(pairs).fit
    vectorizer = TfidfVectorizer(analyzer=terms_of, vocabulary=list(fit.idf), sublinear_tf=True)
    vectorizer.idf_ = np.array(list(fit.idf.values()))
    expected = vectorizer.transform([pairs[0].prompt]).toarray()[0]
    ours = fit._weighted(pairs[0].prompt)
    assert [ours.get(place, 0.0) for place in range(len(fit.idf))] == pytest.approx(list(expected))


def test_book_in_which_both_ways_stand_as_models_is_read(tmp_path: Path) -> None:
    records = [
        Outcome(task=str(i), model=name, prompt=f"p {i}", right=right, tokens_out=7, cost_usd=usd)
        for i in range(3)
        for name, right, usd in (("r2", True, 2), ("large", i > 0, 10))
    ]
    write_book(tmp_path / "book.jsonl", records)
    pairs = read_both_ways(tmp_path / "book.jsonl", "r2", "large")
    assert [(pair.planned_right, pair.direct_right) for pair in pairs] == [
        (True, False),
        (True, True),
        (True, True),
    ]
    assert pairs[0].planning_usd is None and pairs[0].direct_usd == 10
    with pytest.raises(BookError, match="no answers of 'gpt'; it has large, r2"):
        read_both_ways(tmp_path / "book.jsonl", "r2", "gpt")
