"""`validate` warns of models that the allocator knows nothing about, and of models that nothing replaces."""

from __future__ import annotations

import pytest

from tests.serve_config.test_serve_config import MODELS, edited, line_of, only_problem, read


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("      description: hard questions\n", "'large' has no `description`: the allocator chooses by it"),
        ("      group: llm\n", "'large' has no `group` (so it counts as slm): the allocator"),
    ],
)
def test_models_that_the_allocator_knows_nothing_about_are_named(old: str, message: str) -> None:
    text = edited(old, "")
    problem = only_problem(text)
    assert (problem.severity, problem.where) == ("warning", f"{MODELS}[1]")
    assert problem.line == line_of(text, "- name: large") and message in problem.message


def test_blank_description_counts_as_none() -> None:
    assert "no `description`" in only_problem(edited("hard questions", "' '")).message


def test_compact_allocator_reads_no_descriptions() -> None:
    text = edited("      group: llm\n      description: hard questions\n", "      codec: compact\n")
    assert read(text)[1] == []


def test_model_that_no_other_could_replace_is_named() -> None:
    """A pool of one is a choice of one: its description does not matter, its failure does."""
    text = edited("          - small\n", "").replace("      fallbacks: [large]\n", "")
    messages = [(problem.severity, problem.message) for problem in read(text)[1]]
    assert messages == [
        ("warning", f"no other model could answer when {name!r} fails: name one in `fallbacks`")
        for name in ("small", "large")
    ]


def test_model_of_a_pool_that_may_not_stand_in_is_named() -> None:
    text = edited(
        "          decomposer: {model: large}",
        "          fallbacks: typed\n          decomposer: {model: large}",
    )
    assert [problem.message for problem in read(text)[1]] == [
        "no other model could answer when 'large' fails: name one in `fallbacks`"
    ]


def test_pool_without_a_cheaper_model_than_the_default_never_splits_and_says_so() -> None:
    """Models without prices are the usual reason: there is nothing to save by a plan."""
    text = edited(
        "      usd_per_mtok_in: 0.1\n      usd_per_mtok_out: 0.2\n",
        "      usd_per_mtok_in: 1\n      usd_per_mtok_out: 2\n",
    )
    problem = only_problem(text)
    assert (problem.severity, problem.line) == ("warning", line_of(text, "        r2:"))
    assert "`plan: auto` never splits" in problem.message
    always = text.replace("          decomposer:", "          plan: always\n          decomposer:")
    assert read(always)[1] == []


def test_model_of_embeddings_is_no_part_of_a_virtual_model() -> None:
    local = edited("kind: scripted, delay_s: 0.1", "kind: sentence-embeddings, path: a/b")
    hosted = edited("model: gpt-4o", "model: text-embedding-3-small")
    for text, places in ((local, ["pool[0]"]), (hosted, ["pool[1]", "decomposer.model", "allocator.model"])):
        problems = [problem for problem in read(text)[1] if problem.severity == "error"]
        assert [problem.where.partition(".virtual_models.r2.")[2] for problem in problems] == places
        assert all("is not capable of chat" in problem.message for problem in problems)
