"""A wrapping never changes a grade, and no cut or extension of an answer makes it correct."""

from __future__ import annotations

import itertools
import random

import pytest

from r2_serve.grading.grade_math import math_answer
from r2_serve.grading.grade_text import last_letter, last_number, scan_actions, span_scores
from r2_serve.grading.math_compare import compare
from r2_serve.grading.reading import read_answer
from tests.support.wrappings import INNER, LATEX, OUTER, TURNS, Wrap

CHOICES = {"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}
MATHS = (
    "7",
    "-7",
    "\\frac{1}{2}",
    "25000",
    "x^2+1",
    "(1,2)",
    "[2,5)",
    "\\{1,2\\}",
    "2i",
    "0.25",
    "3\\sqrt{2}",
)
EVERY = {**OUTER, **INNER, **LATEX, **TURNS}


def composed(seed: int, num: int) -> list[tuple[str, Wrap]]:
    """Random nests of wrappings, from the inside out: LaTeX, then a line's, an answer's, a turn's."""
    rng = random.Random(seed)

    def nest(layers: list[Wrap]) -> Wrap:
        def wrap(answer: str) -> str:
            for layer in layers:
                answer = layer(answer)
            return answer

        return wrap

    nests = []
    for _ in range(num):
        names = [*rng.sample(list(LATEX), rng.randint(0, 1)), *rng.sample(list(INNER), rng.randint(0, 2))]
        names += rng.sample(list(OUTER), rng.randint(0, 3)) + rng.sample(list(TURNS), rng.randint(0, 1))
        nests.append((" in ".join(names) or "bare", nest([EVERY[name] for name in names])))
    return nests


NESTS = [*((name, wrap) for name, wrap in EVERY.items()), *composed(0, 400)]


def failures(answers: tuple[str, ...], is_right: object, nests: list[tuple[str, Wrap]]) -> list[str]:
    assert callable(is_right)
    return [
        f"{answer} in {name}: {wrap(answer)!r}"
        for answer, (name, wrap) in itertools.product(answers, nests)
        if not is_right(answer, wrap(answer))
    ]


def test_wrapped_letters_are_read() -> None:
    assert (
        failures(
            ("B", "(B)", "B. library", "library"), lambda _, reply: last_letter(reply, CHOICES) == "B", NESTS
        )
        == []
    )


def test_wrapped_numbers_are_read() -> None:
    assert (
        failures(
            ("12", "-5", "1,200", "0"),
            lambda answer, reply: last_number(reply) == answer.replace(",", ""),
            NESTS,
        )
        == []
    )


def test_wrapped_action_sequences_are_read() -> None:
    gold = ("I_TURN_LEFT", "I_JUMP")
    assert (
        failures(
            ("I_TURN_LEFT I_JUMP", "turn left, jump"), lambda _, reply: scan_actions(reply) == gold, NESTS
        )
        == []
    )


def test_wrapped_spans_are_read() -> None:
    answers = ("Paris", "St. Louis", "the Eiffel Tower", "Martin Luther King Jr.")
    assert failures(answers, lambda answer, reply: span_scores(reply, [answer])[0] == 1.0, NESTS) == []


def test_wrapped_formulas_are_read() -> None:
    def is_same(answer: str, reply: str) -> bool:
        found = math_answer(reply)
        return found is not None and found.replace(" ", "") == answer.replace(" ", "")

    assert failures(MATHS, is_same, NESTS) == []


def test_reading_a_reading_changes_nothing() -> None:
    for answer, (_, wrap) in itertools.product((*MATHS, "B", "Paris", "I_JUMP"), NESTS):
        once = read_answer(wrap(answer)).text
        assert read_answer(once).text == once


def _bare(text: str) -> str:
    """`text` without the parts that do not change its value: parentheses, a first zero, LaTeX's slashes."""
    return text.replace("\\", "").strip("()").lstrip("0")


@pytest.mark.parametrize(
    "gold",
    ["7", "-42", "25000", "3.5", "\\frac{3}{4}", "2\\sqrt{3}", "(1,2)", "\\{1,2\\}", "[2,5)", "314_5",
     "x^2+1", "0.\\overline{27}", "10\\pi", "2^{10}", "\\frac{1}{3^{40}}"],
)  # fmt: skip
def test_cuts_and_extensions_that_change_a_value_are_never_equal(gold: str) -> None:
    cuts = [gold[:i] for i in range(1, len(gold))] + [gold[i:] for i in range(1, len(gold))]
    ends = (
        " or 8",
        " \\text{ or } 8",
        " \\text{ to } 8",
        ", 8",
        "+1",
        " million",
        "i",
        " and 9",
        "x",
        "_9",
        "\\cdot 3",
        "7",
    )
    for other in (*cuts, *(gold + end for end in ends), f"-({gold})", f"not {gold}", f"8, {gold}"):
        found = (
            math_answer(f"\\boxed{{{other}}}") if other.count("{") == other.count("}") else math_answer(other)
        )
        if found is not None and _bare(found) != _bare(gold):
            assert compare(gold, found) != "equal", other


@pytest.mark.parametrize(
    "end", [" or 13", "/5", " * 2", "^2", " million", ".5", " - 1", "e3", " to 15", "3", "k", ", or 9", "-9"]
)
@pytest.mark.parametrize("start", ["", "The answer is ", "It is "])
def test_extended_numbers_are_never_the_number(start: str, end: str) -> None:
    assert last_number(f"{start}12{end}") != "12"


@pytest.mark.parametrize(
    "start", ["not ", "about ", "3 + ", "5/", "between 3 and ", "1", "-", "6 or ", "nearly ", "3 to "]
)
def test_numbers_behind_a_hedge_or_an_operator_are_never_the_number(start: str) -> None:
    assert last_number(f"The answer is {start}12") != "12"


@pytest.mark.parametrize(
    "end",
    [" or C", " or (C)", "/C", " and C", ", C", " is wrong", " is not right", " & D", " C", " or maybe C"],
)
def test_letters_with_a_second_or_a_denial_are_no_answer(end: str) -> None:
    for start in ("", "The answer is ", "Answer: ", "<answer>"):
        assert last_letter(f"{start}B{end}", CHOICES) != "B"


@pytest.mark.parametrize(
    "end",
    [" * 2", " x2", " twice", " (3 times)", "^2", " I_WALK", " or I_WALK", " ...", " etc", "\nI_WALK", " 2"],
)
def test_extended_action_sequences_are_never_the_sequence(end: str) -> None:
    for start in ("", "OUT: ", "Answer: "):
        assert scan_actions(f"{start}I_JUMP{end}") != ("I_JUMP",)
