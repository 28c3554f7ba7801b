"""Replies of all benchmarks except P3 get the right verdicts. P3 needs bubblewrap: see `test_sandbox`."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest

from r2_serve.grading.grade_math import alternatives, as_formula, is_equivalent, math_answer
from r2_serve.grading.grade_text import last_letter, scan_actions, span_scores
from r2_serve.grading.graders import (
    Grader,
    GraderConfig,
    Verdict,
    grade_musique,
    grade_scan,
)
from r2_serve.grading.lines import grade_lines
from r2_serve.grading.reading import boxed
from r2_serve.grading.rows import Benchmark, BenchmarkError
from tests.support.official_rows import CHOICES, CSQA, champ_row, math_row

# -- CommonsenseQA -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B) library", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) library, not (A).", "B"),
        ("Answer: **B**", "B"),
        ("answer: (b)", "B"),
        ("\\boxed{B}", "B"),
        ("The answer is $\\boxed{\\text{B}}$.", "B"),
        ("First I thought the answer is A. On reflection, the answer is D.", "D"),
        ("It could be (A) or (C). I choose (C).", "C"),
        ("A person lends books.\nB", "B"),
        ("A library lends books.", None),
        ("library", "B"),
        ("Department store.", "C"),
        ("bank library", None),
        ("The answer is F.", None),
        ("The answer is Bank of England.", None),
        ("", None),
        ("the", None),
        ("I don't know.", None),
    ],
)
def test_letter_stated_last_is_the_answer(answer: str, letter: str | None) -> None:
    assert last_letter(answer, CHOICES) == letter


async def test_csqa_verdicts_are_correct_wrong_or_unparsed() -> None:
    grader = Grader()
    verdicts = [await grader.grade("csqa", CSQA, answer) for answer in ("(B)", "(C)", "who knows")]
    assert [(verdict.id, verdict.status, verdict.correct) for verdict in verdicts] == [
        ("c1", "correct", True),
        ("c1", "wrong", False),
        ("c1", "unparsed", False),
    ]


# -- SCAN ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I_TURN_RIGHT I_JUMP I_TURN_LEFT",
        "RTURN JUMP LTURN",
        "turn right, jump, turn left.",
        "right turn -> jump -> left turn",
        "TURN_RIGHT JUMP TURN_LEFT",
        "['I_TURN_RIGHT', 'I_JUMP', 'I_TURN_LEFT']",
        "1. turn right\n2. jump\n3. turn left",
        "The command means three things.\nOUT: I_TURN_RIGHT I_JUMP I_TURN_LEFT",
        "The answer is: \\boxed{I_TURN_RIGHT I_JUMP I_TURN_LEFT}",
    ],
)
def test_spellings_of_one_action_sequence_are_equal(answer: str) -> None:
    assert scan_actions(answer) == ("I_TURN_RIGHT", "I_JUMP", "I_TURN_LEFT")


@pytest.mark.parametrize("answer", ["", "I_JUMP and then stop", "turn around", "jump twice", "right", "OUT:"])
def test_reply_with_words_that_are_no_actions_is_unparsed(answer: str) -> None:
    assert grade_scan("I_JUMP", answer).status == "unparsed"


@pytest.mark.parametrize("answer", ["I_JUMP", "I_JUMP I_JUMP I_JUMP", "I_JUMP I_WALK", "I_WALK I_JUMP"])
def test_one_action_too_few_too_many_or_swapped_is_wrong(answer: str) -> None:
    assert grade_scan("I_JUMP I_JUMP", answer).status == "wrong"


# -- MuSiQue -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("the Eiffel Tower.", ["Eiffel tower"], 1.0, 1.0),
        ("Paris", ["London", "paris"], 1.0, 1.0),
        ("in Paris France", ["Paris"], 0.0, 0.5),
        ("Barack Hussein Obama", ["Barack Obama"], 0.0, 0.8),
        ("Barack Obama", ["Obama", "Barack Hussein Obama"], 0.0, 0.8),
        ("Rome", ["Paris"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("the", ["Paris"], 0.0, 0.0),
        ("U.S.A.", ["usa"], 1.0, 1.0),
        ("one-two", ["one two"], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_are_the_best_over_aliases(
    answer: str, golds: list[str], exact: float, f1: float
) -> None:
    assert span_scores(answer, golds) == pytest.approx((exact, f1))


def test_musique_is_correct_by_exact_match_and_reports_f1() -> None:
    verdict = grade_musique(["Barack Obama"], "Barack Hussein Obama")
    assert (verdict.correct, verdict.scores) == (False, {"em": 0.0, "f1": pytest.approx(0.8)})


# -- mathematics, as text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "1, \\frac{1}{2}"),
        ("\\boxed{1}. So \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\fbox{3}", "3"),
        ("\\boxed {5}", "5"),
        ("\\boxed{never closed", ""),
        ("none", None),
        ("{} before \\boxed", None),
    ],
)
def test_last_box_is_read_to_its_own_closing_brace(text: str, content: str | None) -> None:
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{7}, not 8", "7"),
        ("Steps.\nThe final answer is $\\frac{3}{4}$.", "\\frac{3}{4}"),
        ("The answer is 1.\nNo: the answer is 2.", "2"),
        ("42", "42"),
        ("$42$", "42"),
        ("\\(x+1\\)", "x+1"),
        ("two\nlines", None),
        ("", None),
        ("\\boxed{}", None),
    ],
)
def test_stated_math_answer_is_found(text: str, answer: str | None) -> None:
    assert math_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "is_equal"),
    [
        ("\\frac12", "\\frac{1}{2}", True),
        ("\\dfrac{1}{2}", "\\frac{1}{2}", True),
        ("1/2", "\\frac{1}{2}", True),
        ("0.5", "\\frac{1}{2}", True),
        (".5", "\\frac{1}{2}", True),
        ("0.25", "\\frac{1}{4}", False),
        ("\\frac1{72}", "\\frac{1}{72}", True),
        ("\\frac{72}1", "\\frac{72}{1}", False),
        ("\\sqrt3", "\\sqrt{3}", True),
        ("x = 5", "5", True),
        ("10\\text{ cm}", "10", True),
        ("50\\%", "50", True),
        ("90^\\circ", "90", True),
        ("\\left( 1, 2 \\right)", "(1,2)", True),
        ("(1,2)", "(2,1)", False),
        ("\\$5", "5", True),
        ("-3/4", "\\frac{-3}{4}", True),
        ("x/y", "\\frac{x}{y}", False),
        ("\\frac", "\\frac", True),
        ("\\sqrt", "\\sqrt{2}", False),
        ("", "1", False),
    ],
)
def test_string_match_is_as_strict_as_the_original(answer: str, gold: str, is_equal: bool) -> None:
    assert is_equivalent(answer, gold) is is_equal


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("(n+1)^(n-1)", "(n+1)^{n-1}"),
        ("2^(n*(n-1))", "2^{n \\cdot (n-1)}"),
        ("floor(n/2)", "{\\lfloor n/2 \\rfloor}"),
        ("C(n+1, 2m+1)", "\\binom{n+1}{ 2m+1}"),
        ("\\sqrt{2}", "\\sqrt{2}"),
        ("sum_(k=1)^n 1/k", None),
        ("100 apples", None),
        ("C(n)", None),
        ("floor(n", None),
    ],
)
def test_plain_notation_becomes_latex_or_is_refused(text: str, formula: str | None) -> None:
    assert as_formula(text) == formula


def test_remarks_in_a_champ_gold_are_left_out() -> None:
    assert alternatives("100 (i.e., all values)") == ["100"]
    assert alternatives("sum_(i=1)^n i^3, or equivalently (n(n+1)/2)^2") == [
        "sum_(i=1)^n i^3",
        "(n(n+1)/2)^2",
    ]


# -- mathematics, by math-verify -----------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("\\frac{3}{4}", "\\boxed{0.75}", "correct"),
        ("\\frac{3}{4}", "The answer is 3/4.", "correct"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}", "correct"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", "correct"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", "correct"),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", "correct"),
        ("\\text{Evelyn}", "\\boxed{\\text{Carla}}", "wrong"),
        ("3", "\\boxed{4}", "wrong"),
        ("3", "It is 3 at first.\nBut then it is \\boxed{5}", "wrong"),
        ("3", "", "unparsed"),
        ("3", "I cannot\nsay.", "unparsed"),
    ],
)
async def test_math_answers_are_compared_by_value(
    grader: Grader, gold: str, answer: str, status: str
) -> None:
    verdict = await grader.grade("math", math_row(gold), answer)
    assert (verdict.status, verdict.correct) == (status, status == "correct")


@pytest.mark.asyncio(loop_scope="module")
async def test_math_verdict_reports_both_scores(grader: Grader) -> None:
    verdict = await grader.grade("math", math_row("\\frac{1}{4}"), "\\boxed{0.25}")
    assert (verdict.correct, verdict.scores) == (True, {"math_verify": 1.0, "string_match": 0.0})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("144", "\\boxed{144}", "correct"),
        ("144", "\\boxed{12^2}", "correct"),
        ("144", "\\boxed{145}", "wrong"),
        ("100 (i.e., all values)", "\\boxed{100}", "correct"),
        ("(n+1)^(n-1)", "\\boxed{(1+n)^{n-1}}", "correct"),
        ("(n+1)^(n-1)", "\\boxed{n^{n-1}}", "wrong"),
        ("2^floor(n/2)*floor(n/2)!", "\\boxed{2^{\\lfloor n/2 \\rfloor} \\lfloor n/2 \\rfloor!}", "correct"),
        ("sum_(i=1)^n i^3, or equivalently (n(n+1)/2)^2", "\\boxed{\\frac{n^2(n+1)^2}{4}}", "correct"),
        ("No", "\\boxed{\\text{No}}", "correct"),
        ("No", "Yes, no doubt about it. The answer is yes.", "wrong"),
        ("No", "Perhaps.", "unparsed"),
        ("sum_(k=1)^n 1/k", "\\boxed{H_n}", "ungradable"),
        ("x(n)<y(n-1) for all n>=3", "\\boxed{x(n) < y(n-1)}", "ungradable"),
        ("n", "\\boxed{m}", "ungradable"),
        ("144", "many\nwords", "unparsed"),
    ],
)
async def test_champ_answers_are_wrong_only_on_proof(
    grader: Grader, gold: str, answer: str, status: str
) -> None:
    verdict = await grader.grade("champ", champ_row(gold), answer)
    assert (verdict.status, verdict.correct) == (
        status,
        {"correct": True, "ungradable": None}.get(status, False),
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_gold_that_math_verify_reads_in_part_is_not_matched_by_that_part(grader: Grader) -> None:
    verdict = await grader.grade("champ", champ_row("2^floor(n/2)*floor(n/2)!"), "\\boxed{2}")
    assert verdict.correct is not True


async def test_tower_of_powers_is_killed_and_delays_no_other_answer() -> None:
    async with Grader(GraderConfig(num_math_workers=2, math_timeout_s=3)) as grader:
        await grader.grade("math", math_row("1"), "1")
        tower = asyncio.create_task(grader.grade("math", math_row("3"), "\\boxed{10^{10^{10}}}"))
        others = [await grader.grade("math", math_row("3"), f"\\boxed{{{i}}}") for i in (2, 3)]
        assert not tower.done()
        verdict = await tower
        after = await grader.grade("math", math_row("3"), "\\boxed{3}")
    assert [other.status for other in others] == ["wrong", "correct"]
    assert (verdict.status, verdict.correct) == ("timeout", None)
    assert after.correct is True


# -- numbers, rows, lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("600", "correct"),
        ("27 + 573 = 600.", "correct"),
        ("1,600", "wrong"),
        ("600.5", "unparsed"),
        ("-600", "wrong"),
        ("many", "unparsed"),
    ],
)
async def test_last_whole_number_is_the_answer(answer: str, status: str) -> None:
    row = {"id": "w", "query": "?", "gold": "600"}
    assert (await Grader().grade("words", row, answer)).status == status


async def test_row_of_another_benchmark_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="not a musique row"):
        await Grader().grade("musique", CSQA, "x")


def graded(benchmark: Benchmark, *lines: object) -> list[Verdict]:
    out = io.StringIO()
    counts = grade_lines(
        benchmark, [line if isinstance(line, str) else json.dumps(line) for line in lines], out
    )
    verdicts = [Verdict.model_validate_json(line) for line in out.getvalue().splitlines()]
    assert sum(counts.values()) == len(verdicts)
    return verdicts


def test_lines_are_graded_in_order_by_gold_or_official_row() -> None:
    lines: list[dict[str, object]] = [
        {"id": str(i), "gold": "B", "answer": "B" if i % 3 else "C"} for i in range(50)
    ]
    lines.append({"id": "official", "row": CSQA, "answer": "library"})
    verdicts = graded("csqa", *lines)
    assert [verdict.id for verdict in verdicts] == [*map(str, range(50)), "official"]
    assert [verdict.correct for verdict in verdicts] == [bool(i % 3) for i in range(50)] + [True]


@pytest.mark.parametrize(
    "line",
    ["{broken", "[1]", "3", '{"id": "x"}',
     '{"id": null, "answer": NaN, "gold": "B"}', '{"id": "x", "answer": 3, "gold": "B"}',
     '{"id": "x", "answer": "B"}', '{"id": "x", "answer": "B", "gold": 5}',
     '{"id": "x", "answer": "B", "row": {"id": "x"}}', "[" * 100_000],
)  # fmt: skip
def test_bad_line_is_an_error_verdict_and_the_rest_is_graded(line: str) -> None:
    bad, good = graded("csqa", line, {"id": "good", "gold": "B", "answer": "(B)"})
    assert (bad.status, bad.correct) == ("error", None)
    assert bad.detail.startswith("line 1: ")
    assert good.correct is True


@pytest.mark.parametrize(
    ("benchmark", "gold", "answer"),
    [
        ("scan", "I_JUMP", "JUMP"),
        ("musique", ["Paris", "City of Light"], "the city of light"),
        ("musique", "Paris", "Paris"),
        ("words", 12, "12"),
        ("gsm8k", 1200, "1,200"),
        ("champ", "144", "144"),
    ],
)
def test_every_benchmark_takes_a_bare_gold(benchmark: Benchmark, gold: object, answer: str) -> None:
    (verdict,) = graded(benchmark, {"id": "x", "gold": gold, "answer": answer})
    assert (verdict.id, verdict.correct) == ("x", True)


def test_blank_lines_are_skipped_and_lines_keep_their_numbers() -> None:
    good = json.dumps({"gold": "B", "answer": "(B)"})
    assert [verdict.id for verdict in graded("csqa", "", good, "  ", good)] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a\\ud800", "gold": "B", "answer": "(B)"}',
        '{"id": "a\\udfff", "gold": 5, "answer": "(B)"}',
    ],
)
def test_lone_surrogate_in_an_id_is_an_error_verdict_and_the_rest_is_graded(line: str) -> None:
    bad, good = graded("csqa", line, {"id": "good", "gold": "B", "answer": "(B)"})
    assert (bad.id, bad.status, bad.correct) == ("a?", "error", None)
    assert good.correct is True


def test_lone_surrogate_in_an_answer_or_a_gold_is_graded() -> None:
    lines = [
        '{"id": "1", "gold": "x\\ud800", "answer": "y\\udc00"}',
        '{"id": "2", "gold": "Paris", "answer": "Paris"}',
    ]
    assert [verdict.correct for verdict in graded("musique", *lines)] == [False, True]
    assert [verdict.correct for verdict in graded("math", *lines)] == [False, True]


def test_byte_order_mark_before_the_first_line_is_dropped() -> None:
    (verdict,) = graded("csqa", '\ufeff{"id": "x", "gold": "B", "answer": "(B)"}')
    assert (verdict.id, verdict.correct) == ("x", True)


def test_every_row_of_one_id_is_graded() -> None:
    assert [
        v.correct
        for v in graded("csqa", *({"id": "x", "gold": "B", "answer": answer} for answer in ("(B)", "(C)")))
    ] == [True, False]


@pytest.mark.parametrize("answer", ["", " ", "the", ".", "choice", "option"])
def test_answers_without_a_choice_never_match_a_bare_gold(answer: str) -> None:
    verdicts = graded("csqa", *({"id": letter, "gold": letter, "answer": answer} for letter in "ABCDE"))
    assert {verdict.status for verdict in verdicts} == {"unparsed"}


def test_math_gold_is_a_short_answer_or_a_whole_solution() -> None:
    short, long = (
        {"id": "a", "gold": "\\frac{1}{2}", "answer": "0.5"},
        {"id": "b", "gold": "Long, \\boxed{2}.", "answer": "2"},
    )
    assert [verdict.correct for verdict in graded("math", short, long)] == [True, True]


def test_importing_the_graders_loads_neither_torch_nor_ray_nor_sympy() -> None:
    import subprocess

    program = (
        "import sys, r2_serve.grading.graders\n"
        "print({'torch', 'ray', 'sympy', 'math_verify'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"
