"""Reads the answers of replies, and gathers equal answers of one task into groups.

Each grader has a reader, which finds the answer in a reply, and a rule by which two answers are equal:

| grader | an answer is | two are equal if |
|---|---|---|
| math | a formula or a name | the graders of MATH call their values equal |
| number | a number | their values are equal |
| choice | the letter of a choice | they are one letter |
| text | a few words | they are equal without case, articles and punctuation |
| literal | a Python literal | their values are equal |

Group 0 holds the gold answer. A reply without an answer belongs to no group.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from r2_serve.grading import grade_math, grade_text
from r2_serve.grading.formula import Formula, formula
from r2_serve.grading.reading import read_answer, read_envelope
from r2_serve.lab.outcomes.book import GraderName

Read = Callable[[str], str | None]
_DECIMAL = re.compile(
    r"[^\w.-]{0,3}(-?)[^\w.-]{0,3}((?:\d{1,3}(?:,\d{3})+|\d+)?\.\d+|\d+)(?:/(\d+))?(?:\D.{0,20})?"
)
_CHOICE = re.compile(r"(?m)^[ \t>*-]*\(?([A-Z])[).:][*]*[ \t]+(\S.*)$")
_FENCED = re.compile(r"(?s)\A\s*```\w*\s*(.*?)\s*(?:```\s*)?\Z")


def reader(grader: GraderName, choices: Mapping[str, str] | None = None) -> Read:
    """The function that finds the answer in a reply, in the spelling in which equal answers are compared."""
    if grader == "choice":
        return lambda reply: grade_text.last_letter(reply, choices)
    return _READERS[grader]


def choices_in(prompt: str) -> dict[str, str]:
    """The choices that a prompt lists as "A) text" in lines of their own; empty if it lists none."""
    found = {letter: text.strip() for letter, text in _CHOICE.findall(prompt)}
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(found)]
    return found if len(found) > 1 and list(found) == list(letters) else {}


def number_answer(reply: str) -> str | None:
    """The number that a reply states, as a whole number or a reduced fraction; None if it states none."""
    whole = grade_text.last_number(reply)
    if whole is not None:
        return whole
    match = _DECIMAL.fullmatch(read_answer(reply).text.strip())
    if match is None:
        return None
    sign, digits, under = match.groups()
    if under is not None and not int(under):
        return None
    value = Fraction(digits.replace(",", "")) / int(under or 1)
    return str(-value if sign else value)


def text_answer(reply: str) -> str | None:
    """The words of a reply's answer without case, articles and punctuation."""
    return grade_text.normalised_span(read_answer(reply).text) or None


def literal_answer(reply: str) -> str | None:
    """The Python literal that a reply states, as Python prints it. A text without quotes is a string."""
    value = _json_value(reply)
    if value is not None and not isinstance(value, str):
        return _printed(value)
    text = value if isinstance(value, str) else read_envelope(reply)
    if value is None and text == reply:
        text = read_answer(reply).text
    text = text.strip().strip("`").strip()
    try:
        return _printed(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return repr(text) if text else None


def _json_value(reply: str) -> object:
    """The value of the field `answer` of a reply that is one JSON object; None if there is none."""
    fenced = _FENCED.match(reply) if "```" in reply[:8] else None
    try:
        found = json.loads(fenced[1] if fenced else reply, strict=False)
    except (ValueError, RecursionError):
        return None
    return found.get("answer") if isinstance(found, dict) else None


def _printed(value: object) -> str:
    """The spelling of a value; sets and dicts of equal values have one spelling."""
    match value:
        case dict():
            pairs = sorted((_printed(key), _printed(item)) for key, item in value.items())
            return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}"
        case set() | frozenset():
            return "{" + ", ".join(sorted(map(_printed, value))) + "}" if value else "set()"
        case list():
            return "[" + ", ".join(map(_printed, value)) + "]"
        case tuple():
            return "(" + ", ".join(map(_printed, value)) + ("," if len(value) == 1 else "") + ")"
        case _:
            return repr(value)


_READERS: dict[str, Read] = {
    "math": grade_math.math_answer,
    "number": number_answer,
    "text": text_answer,
    "literal": literal_answer,
}


# -- equal formulas ------------------------------------------------------------------------------------------

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
