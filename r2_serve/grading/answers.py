"""Reads the answers of replies.

Each grader has a reader, which finds the answer in a reply, and a rule by which two answers are equal:

| grader | an answer is | two are equal if |
|---|---|---|
| math | a formula or a name | the graders of MATH call their values equal |
| number | a number | their values are equal |
| choice | the letter of a choice | they are one letter |
| text | a few words | they are equal without case, articles and punctuation |
| literal | a Python literal | their values are equal |

`grading.equality` gathers equal answers of one task into groups.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from r2_serve.grading import grade_math, grade_text
from r2_serve.grading.reading import read_answer, read_envelope
from r2_serve.types import GraderName

Read = Callable[[str], str | None]
_DECIMAL = re.compile(r"(?<![\w./])(-?)\$?(-?(?:\d{1,3}(?:,\d{3})+|\d+)?\.\d+|\d+(?=/))(?:/(\d+))?(?![\w/])")
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


def choices_offered(prompt: str) -> dict[str, str]:
    """The choices that a prompt lists; if it lists none, ten letters without a text."""
    return choices_in(prompt) or dict.fromkeys("ABCDEFGHIJ", "")


def number_answer(reply: str) -> str | None:
    """The number that a reply states, as a whole number or a reduced fraction; None if it states none."""
    whole = grade_text.last_number(reply)
    if whole is not None:
        return whole
    text = read_answer(reply).text
    match = next(reversed(list(_DECIMAL.finditer(text))), None)
    if match is None:
        return None
    before, after = text[: match.start()], text[match.end() :]
    if re.search(r"\d\s*$", before) or re.search(r"\d", after) or grade_text.is_part(before, after):
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
