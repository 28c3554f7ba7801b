"""Grades agree with the labelled pairs of math-verify's own tests, and with values compared by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NotRequired, TypedDict

import pytest

from r2_serve.grading.graders import Grader
from r2_serve.grading.math_compare import compare
from tests.support.official_rows import math_row


class Pair(TypedDict):
    """A labelled pair. `disagreement` says why our grade differs from the label."""

    test: str
    gold: str
    reply: str
    is_equal: bool
    disagreement: NotRequired[str]


PAIRS: list[Pair] = json.loads(
    Path(__file__).with_name("math_verify_pairs.json").read_text(encoding="utf-8")
)["pairs"]
MIN_AGREEMENT = 0.97


def readable(pair: Pair) -> bool:
    """Whether the pair's gold can be read: the grader refuses a row whose box is cut off."""
    return "W(n) = -1" not in str(pair["gold"])


@pytest.mark.asyncio(loop_scope="module")
async def test_grades_agree_with_published_labels_except_for_explained_pairs(grader: Grader) -> None:
    disagreeing = [pair for pair in PAIRS if not readable(pair)]
    for pair in filter(readable, PAIRS):
        verdict = await grader.grade("math", math_row(pair["gold"]), pair["reply"])
        if (verdict.correct is True) != pair["is_equal"]:
            disagreeing.append(pair)
    assert [pair for pair in disagreeing if "disagreement" not in pair] == []
    assert 1 - len(disagreeing) / len(PAIRS) >= MIN_AGREEMENT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(1,2)", "\\{1,2\\}"),
        ("\\{1,2\\}", "(1,2)"),
        ("1,-2", "(-2,1)"),
        ("(1,2,3)", "(3,2,1)"),
        ("[2,5)", "(2,5]"),
        ("x", "X"),
        ("5", "8 = 5"),
        ("1", "x+z=1"),
        ("10 \\text{ cm}", "10 \\text{ m}"),
        ("5 \\text{ hours}", "5 \\text{ minutes}"),
        ("\\frac{1}{3}", "0.33"),
        ("\\pi", "3.14"),
        ("10^{30}", "10^{31}"),
        ("10^{-30}", "0"),
        ("2^{100}", "2^{100}+1"),
        ("x^{40}", "x^{41}"),
        ("2, 4, 6", "2, 4, \\ldots"),
        ("5", "5 \\approx 6"),
        ("\\{1,2,3\\}", "\\{1,2\\}"),
        ("11_2", "11_3"),
        ("11_2", "11"),
        ("5", "\\text{5 or 7}"),
        ("-3 \\le x \\le 2", "-3 < x \\le 2"),
        ("x > 2", "x < 2"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"),
        ("\\text{Ann}", "\\text{Anne}"),
    ],
)
def test_different_values_are_not_equal(gold: str, answer: str) -> None:
    assert compare(gold, answer) != "equal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{3^{40}}", "3^{-40}"),
        ("\\frac{1}{3}", "0.333333"),
        ("0.1\\overline{6}", "\\frac{1}{6}"),
        ("(1,2)", "1,2"),
        ("1,-2", "-2 \\text{ and } 1"),
        ("1,-2", "x = 1 \\text{ or } x = -2"),
        ("1 \\pm \\sqrt{2}", "1+\\sqrt{2}, 1-\\sqrt{2}"),
        ("(-\\infty,-1)\\cup(2,\\infty)", "x < -1 \\text{ or } x > 2"),
        ("(2,5)", "]2, 5["),
        ("[2,5)", "2 \\le x < 5"),
        ("\\emptyset", "\\varnothing"),
        ("2i", "(1+i)^2"),
        ("6\\frac{2}{3}", "20/3"),
        ("10 \\text{ cm}", "10 \\text{ centimeters}"),
        ("10", "10 \\text{ apples}"),
        ("50\\%", "50"),
        ("90^\\circ", "90 \\text{ degrees}"),
        ("\\text{(C)}", "C"),
        ("\\text{Evelyn}", "evelyn"),
        ("1.5 \\times 10^3", "1500"),
        ("\u221a2", "\\sqrt{2}"),
        ("2\u03c0", "2\\pi"),
        ("3x+4", "4 + 3x"),
        ("12345678", "12\\,345\\,678"),
        ("1000.99", "1.000,99".replace(".", "")),
    ],
)
def test_equal_values_in_other_spellings_are_equal(gold: str, answer: str) -> None:
    assert compare(gold, answer) == "equal"
