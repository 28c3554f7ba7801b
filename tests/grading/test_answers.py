"""Answers in replies as real models write them are read in full and graded strictly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from r2_serve.grading.graders import Grader, GraderConfig
from r2_serve.grading.rows import Benchmark

CHOICES = {"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}
CSQA = {
    "id": "c",
    "answerKey": "B",
    "question": {
        "stem": "?",
        "choices": [{"label": label, "text": text} for label, text in CHOICES.items()],
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[Grader]:
    async with Grader(GraderConfig(num_math_workers=2, math_timeout_s=20)) as grader:
        yield grader


async def is_correct(grader: Grader, benchmark: Benchmark, row: Mapping[str, object], reply: str) -> bool:
    return (await grader.grade(benchmark, row, reply)).correct is True


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "reply", "is_right"),
    [
        ("5", "\\boxed{5 \\text{ or } 7}", False),
        ("12", "\\boxed{12 \\text{ to } 15}", False),
        ("3 \\text{ hours } 25 \\text{ minutes}", "\\boxed{3 \\text{ hours } 40 \\text{ minutes}}", False),
        ("3 \\text{ hours } 25 \\text{ minutes}", "\\boxed{3 \\text{ hours } 25 \\text{ minutes}}", True),
        ("314_5", "\\boxed{314_6}", False),
        ("314_5", "\\boxed{314_5}", True),
        ("314_5", "\\boxed{314_{5}}", True),
        ("314_5", "\\boxed{314}", False),
        ("314_5", "\\boxed{314_{\\text{five}}}", True),
        ("2-\\frac{3}{\\mathrm{e}}", "\\boxed{2+\\frac{5}{\\mathrm{e}}}", False),
        ("2-\\frac{3}{\\mathrm{e}}", "\\boxed{2-\\frac{3}{e}}", True),
        ("\\frac{1}{3^{40}}", "\\boxed{\\frac{1}{3^{41}}}", False),
        ("\\frac{1}{3^{40}}", "\\boxed{3^{-40}}", True),
        ("25000", "\\boxed{25\\,000}", True),
        ("0", "\\boxed{25\\,000}", False),
        ("25000", "\\boxed{25~000}", True),
        ("0", "\\boxed{25~000}", False),
        ("25000", "\\boxed{25\\thinspace 000}", True),
        ("0", "\\boxed{25\\thinspace 000}", False),
        ("25000", "\\boxed{25{,}000}", True),
        ("0", "\\boxed{25{,}000}", False),
        ("25000", "\\boxed{25,000}", True),
        ("0", "\\boxed{25,000}", False),
        ("25000", "\\boxed{25 000}", True),
        ("0", "\\boxed{25 000}", False),
        ("25000", "\\boxed{25,\\!000}", True),
        ("0", "\\boxed{25,\\!000}", False),
        ("25000", "\\boxed{25\\;000}", True),
        ("0", "\\boxed{25\\;000}", False),
        ("0.\\overline{27}", "\\boxed{\\frac{3}{11}}", True),
        ("0.\\overline{27}", "\\boxed{0.\\overline{72}}", False),
        ("0.\\overline{3}", "\\boxed{1/3}", True),
        ("\\frac{1}{6}", "\\boxed{0.1\\overline{6}}", True),
        ("\\frac{20}{3}", "6 2/3", True),
        ("2i", "(1+i)^2", True),
        ("\\emptyset", "\\varnothing", True),
        ("\\frac{20}{3}", "6\\frac{2}{3}", True),
        ("6\\frac{2}{3}", "\\frac{20}{3}", True),
        ("7", '{"answer": "7"}', True),
        ("7", "Answer\uff1a7", True),
        ("8", "It is not 8", False),
        ("[-2,3]", "-2 \\le x \\le 3", True),
        ("[2,5)", "[2, 5[", True),
        ("(1,2)", "\\{1,2\\}", False),
        ("\\{1,2\\}", "(1,2)", False),
        ("(2,5]", "]2,5]", True),
        ("(2,5)", "2<x<5", True),
        ("[2,5)", "]2,5]", False),
        ("(-\\infty,2)", "x<2", True),
        ("(-\\infty,-1)\\cup(2,\\infty)", "x<-1 or x>2", True),
        ("-2 \\le x \\le 3", "[-2,3]", True),
    ],
)
async def test_math_replies_are_read_whole(grader: Grader, gold: str, reply: str, is_right: bool) -> None:
    row = {"problem": "p", "solution": f"So \\boxed{{{gold}}}."}
    assert await is_correct(grader, "math", row, reply) is is_right


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "reply", "is_right"),
    [
        ("1/10^30", "\\boxed{1/10^{31}}", False),
        ("1/10^30", "\\boxed{1/10^{30}}", True),
        ("No", '{"answer": "No"}', True),
    ],
)
async def test_champ_replies_are_read_whole(grader: Grader, gold: str, reply: str, is_right: bool) -> None:
    row = {"problem_identifier": "P", "problem_text": "?", "problem_answer": gold}
    assert await is_correct(grader, "champ", row, reply) is is_right


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("The answer is (B). Option A is wrong because it keeps money.", True),
        ('{"answer": "B"}', True),
        ("ANSWER: $B$", True),
        ("\uff08B\uff09", True),
        ("\\boxed{\\mathrm{B}}", True),
        ("The answer must be B.", True),
        ("B - library", True),
        ("B or C", False),
        ("The answer is B or C.", False),
        ("(B) and (C)", False),
        ("Not B.", False),
        ("The answer is not B.", False),
        ("B - bank", False),
        ("The answer is library.", True),
        ('{"answer": "library"}', True),
        ("B: library", True),
        ("**B**: library", True),
        ("(B) library is the best.", True),
        ("Option B", True),
        ("It is either A or B", False),
        ('{"choice": "B"}', True),
        ("A, B", False),
        ("A/B", False),
        ("B?", True),
        ("B. library\n\nBecause a bank (A) keeps money.", True),
        ("The correct option is B", True),
        ("I would choose B", True),
        ("\u7b54\u6848\u662fB", True),
        ("B isn't right", False),
        ("(A) is wrong, (C) is wrong, so (B).", True),
    ],
)
async def test_csqa_replies_are_read_whole(grader: Grader, reply: str, is_right: bool) -> None:
    assert await is_correct(grader, "csqa", CSQA, reply) is is_right


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "reply", "is_right"),
    [
        ("I_JUMP", "I_JUMP * 2", False),
        ("I_JUMP", "I_JUMP x 2", False),
        ("I_JUMP", "I_JUMP twice", False),
        ("I_JUMP I_WALK", "- I_JUMP\n- I_WALK", True),
        ("I_JUMP I_WALK", "* I_JUMP\n* I_WALK", True),
        ("I_JUMP I_WALK", "\u2022 jump\n\u2022 walk", True),
        ("I_JUMP I_WALK", '{"actions": ["I_JUMP", "I_WALK"]}', True),
        ("I_JUMP I_WALK", '{"actions": "I_JUMP I_WALK"}', True),
        ("I_JUMP I_WALK", '["I_JUMP", "I_WALK"]', True),
        ("I_JUMP I_WALK", "1. I_JUMP\n2. I_WALK", True),
        ("I_JUMP I_WALK", "1) I_JUMP 2) I_WALK", True),
        ("I_JUMP I_WALK", "```\nI_JUMP I_WALK\n```", True),
        ("I_JUMP I_WALK", "**I_JUMP I_WALK**", True),
        ("I_JUMP", "I_JUMP I_JUMP", False),
        ("I_JUMP", "I_JUMP or I_WALK", False),
        ("I_JUMP", "I_JUMP (x3)", False),
        ("I_JUMP", "I_JUMP^3", False),
        ("I_JUMP", "3 I_JUMP", False),
        ("I_JUMP", "2 * I_JUMP", False),
        ("I_JUMP", "Answer: I_JUMP\nI_WALK", False),
        ("I_JUMP I_WALK", "**OUT:** I_JUMP I_WALK", True),
        ("I_JUMP I_WALK", "I_JUMP, then I_WALK", False),
        ("I_JUMP I_WALK", "\\boxed{\\text{I\\_JUMP I\\_WALK}}", True),
        ("I_JUMP I_WALK", "I\\_JUMP I\\_WALK", True),
    ],
)
async def test_scan_replies_are_read_whole(grader: Grader, gold: str, reply: str, is_right: bool) -> None:
    row = {"commands": "jump", "actions": gold}
    assert await is_correct(grader, "scan", row, reply) is is_right


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "reply", "is_right"),
    [
        ("5", "\u22125", False),
        ("-5", "\u22125", True),
        ("12", "3,4,12", True),
        ("12", "12 or 13", False),
        ("12", "13 or 12", False),
        ("12", "12/13", False),
        ("12", "5/12", False),
        ("12", "about 12", False),
        ("12", "not 12", False),
        ("12", "12 million", False),
        ("12", "12.5", False),
        ("12", "12.0", True),
        ("1200", "1,200", True),
        ("12", "3 + 9 = 12", True),
        ("9", "3+9", False),
        ("12", '{"answer": 12}', True),
        ("12", "$12$", True),
        ("12", "12 apples", True),
        ("12", "\\boxed{12}", True),
        ("12", "The answer is 12. I used 3 and 4.", True),
        ("12", "**12**", True),
        ("12", "-12", False),
        ("12", "1e12", False),
        ("12", "12e3", False),
        ("12", "12^2", False),
        ("12", "12 * 2", False),
        ("12", "12%", True),
        ("12", "3 to 12", False),
        ("12", "between 3 and 12", False),
        ("12", "\uff11\uff12", True),
        ("12", "12-13", False),
        ("12", "She has 12 coins, not 13.", True),
        ("12", "2*6 = 12.", True),
        ("12", "The total is **12** coins.", True),
    ],
)
async def test_number_replies_are_read_whole(grader: Grader, gold: str, reply: str, is_right: bool) -> None:
    row = {"id": "w", "query": "?", "gold": gold}
    assert await is_correct(grader, "words", row, reply) is is_right


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("answerable", "reply", "is_right"),
    [
        (False, "Paris", False),
        (False, "unanswerable", True),
        (False, "I cannot answer: not enough information.", True),
        (True, "Paris", True),
        (True, "The answer is Paris.", True),
        (True, '{"answer": "Paris"}', True),
        (True, "\u201cParis\u201d", True),
        (True, "Paris or London", False),
        (True, "unanswerable", False),
    ],
)
async def test_musique_counts_unanswerable_rows_as_its_official_script(
    grader: Grader, answerable: bool, reply: str, is_right: bool
) -> None:
    row = {"id": "m", "question": "q", "answer": "Paris", "answerable": answerable}
    assert await is_correct(grader, "musique", row, reply) is is_right
