"""Gathers equal answers of one task into groups, by the rules of `grading.answers`.

Formulas are compared in the killable processes of `grading.math_workers`, each pair once. Every other rule
compares spellings, in this process. The verdict on a formula is that of the graders of MATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fractions import Fraction

from r2_serve.grading import grade_math
from r2_serve.grading.formula import Formula, formula
from r2_serve.grading.math_workers import MathTimeout, MathWorkers
from r2_serve.grading.reading import read_answer
from r2_serve.types import GraderName

COMPARISON_S = 5.0
"""Longest time of one comparison of two formulas; after it they count as different."""
_FRACTION = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
_PLAIN = re.compile(r"-?\d+(?:/\d+|\.\d+)?")
_NEAR = Fraction(1, 100_000)
"""Relative difference above which two numbers differ; `math_compare` calls decimals equal below 1e-6."""


class Spelling:
    """One mathematical answer in the forms by which most comparisons end at once."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.formula: Formula = formula(answer)
        self.value = _value(self.formula.latex)

    def surely(self, other: Spelling) -> bool | None:
        """Whether two answers are equal, if their spelling decides it; None if their values must be compared.

        Numbers whose values are far apart differ; where a decimal is near, the full comparison rounds.
        """
        if self.formula.text and self.formula.text == other.formula.text:
            return True
        if self.value is None or other.value is None:
            return None
        size = max(abs(self.value), abs(other.value))
        if abs(self.value - other.value) > size * _NEAR:
            return False
        return True if self.value == other.value and self.formula.unit == other.formula.unit else None


def _value(latex: str) -> Fraction | None:
    """The value of a whole number, a decimal or a fraction; None for anything else."""
    text = latex.strip()
    match = _FRACTION.fullmatch(text)
    if match is not None:
        text = f"{match[1]}{match[2]}/{match[3]}"
    try:
        return Fraction(text) if _PLAIN.fullmatch(text) else None
    except ZeroDivisionError:
        return None


async def equal_groups(
    grader: GraderName, gold: str | None, answers: Sequence[str | None], comparer: Comparer
) -> list[int | None]:
    """The group of each answer: 0 if it equals `gold`, else that of the first earlier answer that is equal.

    An answer that is None belongs to no group. All are in the spelling of `grading.answers.reader`, but the
    gold answer of `math`, which may have wrappers.
    """
    if grader != "math":
        return same_spelling_groups(gold, answers)
    return await _math_groups(None if gold is None else read_answer(gold).text, answers, comparer)


def same_spelling_groups(gold: str | None, answers: Sequence[str | None]) -> list[int | None]:
    """Group answers that are compared by their spelling; None for replies without an answer."""
    numbers: dict[str, int] = {} if gold is None else {gold: 0}
    groups: list[int | None] = []
    for answer in answers:
        if answer is None:
            groups.append(None)
        else:
            groups.append(numbers.setdefault(answer, max(numbers.values(), default=0) + 1))
    return groups


async def _math_groups(
    gold: str | None, answers: Sequence[str | None], comparer: Comparer
) -> list[int | None]:
    """The group of each answer: that of the first earlier answer that is equal."""
    heads: list[tuple[int, Spelling]] = [] if gold is None else [(0, Spelling(gold))]
    known: dict[str, int] = {}
    next_number = 1
    for answer in answers:
        if answer is None or answer in known:
            continue
        spelling = Spelling(answer)
        number = await comparer.first_equal(heads, spelling)
        if number is None:
            number, next_number = next_number, next_number + 1
            heads.append((number, spelling))
        known[answer] = number
    return [None if answer is None else known[answer] for answer in answers]


class Comparer:
    """Compares formulas; its processes start with the first comparison that needs one."""

    def __init__(self) -> None:
        self._workers: MathWorkers | None = None

    async def first_equal(self, heads: Sequence[tuple[int, Spelling]], answer: Spelling) -> int | None:
        """The number of the first of `heads` that equals `answer`; spellings are tried before values."""
        sure = [head.surely(answer) for _, head in heads]
        if True in sure:
            return heads[sure.index(True)][0]
        for (number, head), known in zip(heads, sure, strict=True):
            if known is None and await self._is_equal(head, answer):
                return number
        return None

    async def _is_equal(self, one: Spelling, other: Spelling) -> bool:
        """The rule of `Grader` for MATH: equal values, or one text after MATH's own normalisation."""
        is_same_text = grade_math.is_equivalent(other.answer, one.answer) and "\\text{ " not in (
            f"{other.answer}{one.answer}"
        )
        if not (one.formula.latex and other.formula.latex) and not (one.formula.base or other.formula.base):
            return is_same_text
        if self._workers is None:
            self._workers = MathWorkers(os.cpu_count() or 1, timeout_s=COMPARISON_S)
        try:
            relation = await self._workers.compare(one.answer, other.answer)
        except MathTimeout:
            return is_same_text
        return relation == "equal" or (is_same_text and relation == "unread")

    async def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            await self._workers.close()
