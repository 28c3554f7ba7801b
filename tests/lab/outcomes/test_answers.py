"""Answers are read and compared by their grader."""

from __future__ import annotations

import pytest

from r2_serve.grading.answers import choices_in, literal_answer, number_answer, reader
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.lab.outcomes.grading import graded
from r2_serve.types import GraderName


def outcomes(gold: str, *replies: str, prompt: str = "") -> list[Outcome]:
    return [
        Outcome(task="t", model=f"m{i}", prompt=prompt, gold=gold, reply=reply)
        for i, reply in enumerate(replies)
    ]


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ('{"reasoning": "5 + 5", "answer": "1,234"}', "1234"),
        ('{"reasoning": "cut off", "answer": "', None),
        ("The answer is $7.50.", "15/2"),
        ('{"answer": "-0.25"}', "-1/4"),
        ('{"answer": "1/2"}', "1/2"),
        ('{"answer": "18.00"}', "18"),
        ("I do not know.", None),
        ("x = 2.5", "5/2"),
        ("The total is $12.50.", "25/2"),
        ("$-2.50", "-5/2"),
        ("2:00 pm", "2"),
        ("2:30", None),
        ("12 or 13", None),
        ("12.5, about 13", None),
        ("about 12.5", None),
        ("12.5 million", None),
        ("12 1/2", None),
        ("1/2/3", None),
        ("5e-3", None),
    ],
)
def test_number_is_read_as_its_value(reply: str, number: str | None) -> None:
    assert number_answer(reply) == number


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"reasoning": "r", "answer": "[1, 2]"}', "[1, 2]"),
        ('```json\n{"answer": [1, 2]}\n```', "[1, 2]"),
        ('{"answer": "\'ab\'"}', "'ab'"),
        ('{"answer": "ab"}', "'ab'"),
        ('{"answer": "{2: 1, 1: 2}"}', "{1: 2, 2: 1}"),
        ('{"answer": "(1,)"}', "(1,)"),
        ('{"answer": true}', "True"),
    ],
)
def test_literal_is_read_as_python_prints_it(reply: str, value: str) -> None:
    assert literal_answer(reply) == value


def test_choices_are_read_from_the_prompt() -> None:
    prompt = "Which?\n- A) red\n- B) green\n- C) blue\nAnswer with a letter."
    assert choices_in(prompt) == {"A": "red", "B": "green", "C": "blue"}
    assert choices_in("A) alone") == {}
    assert reader("choice", choices_in(prompt))('{"answer": "green"}') == "B"


@pytest.mark.parametrize(
    ("grader", "gold", "replies", "groups"),
    [
        (
            "number",
            "18",
            ['{"answer": "18.0"}', '{"answer": "17"}', '{"answer": "17"}', "none"],
            [0, 1, 1, None],
        ),
        ("choice", "B", ['{"answer": "(B)"}', '{"answer": "A"}', '{"answer": "A. x"}'], [0, 1, 1]),
        (
            "text",
            "The Moon",
            ['{"answer": "moon"}', '{"answer": "the sun."}', '{"answer": "Sun"}'],
            [0, 1, 1],
        ),
        (
            "literal",
            "'ab'",
            ['{"answer": "\\"ab\\""}', '{"answer": "ba"}', '{"answer": "\'ba\'"}'],
            [0, 1, 1],
        ),
    ],
)
def test_equal_answers_have_one_group(
    grader: GraderName, gold: str, replies: list[str], groups: list[int | None]
) -> None:
    found = graded(outcomes(gold, *replies), grader)
    assert [record.group for record in found] == groups
    assert [record.right for record in found] == [group == 0 for group in groups]


def test_formulas_are_equal_by_their_values() -> None:
    replies = [
        r"\boxed{\frac{1}{2}}",
        r"\boxed{0.5}",
        r"\boxed{x+1}",
        r"\boxed{1+x}",
        r"\boxed{3}",
        r"so \boxed{",
    ]
    pytest.importorskip("math_verify")
    found = graded(outcomes("1/2", *replies), "math")
    assert [record.group for record in found] == [0, 0, 1, 1, 2, None]


def test_verdict_of_a_file_stays_where_there_is_no_gold() -> None:
    record = Outcome(task="t", model="m", reply="Paris", right=True)
    assert graded([record], "text")[0].right is True
