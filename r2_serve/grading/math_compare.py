"""Compares two mathematical answers by their values. It imports sympy, so only the worker processes load it.

Each side is read in full by latex2sympy, or not at all. Numbers agree to the last digit, decimals to six.
Everything else is what math-verify calls equal, except that brackets, kinds of brackets and tiny numbers
count.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import is_expr_of_only_symbols, latex2sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
from latex2sympy2_extended.logic import And  # type: ignore[import-untyped]
from math_verify import verify  # type: ignore[import-untyped]
from sympy.core.relational import Relational  # type: ignore[import-untyped]

from r2_serve.grading.formula import formula, same_unit
from r2_serve.grading.reading import closing

Relation = Literal["equal", "different", "unknown", "unread"]
"""`different`: proven by values that differ somewhere. `unknown`: neither is proven. `unread`: one side is no
formula."""

_DECIMALS, _EXACT = 1.01e-6, 1e-12
"""Relative differences that count as equal: with a decimal on one side ("0.333333" for 1/3), and without."""
_DIGITS = 30
_POINTS = ((4, 1), (7, -1), (5, 2), (12, -3))
"""Values at which two expressions are compared: that of the first symbol, and the step to the next one's."""


def compare(gold: str, answer: str) -> Relation:
    """How `answer` relates to `gold`; both without wrappers."""
    golds, answers = formula(gold), formula(answer)
    if golds.text and golds.text == answers.text:
        return "equal"
    if golds.base or answers.base:
        return "equal" if golds.base == answers.base else "different"
    if not (golds.latex and answers.latex):
        return "unread"
    if re.fullmatch(r"-?\d+\.\d+", golds.latex) and answers.latex == golds.latex.replace(".", ","):
        return "equal"
    is_complex = any(re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", side.latex) for side in (golds, answers))
    one, other = (_read(side.latex, is_complex=is_complex) for side in (golds, answers))
    if one is None or other is None:
        return "unread"
    if _is_point(golds.latex) != _is_point(answers.latex) and not _is_same_list(golds.latex, answers.latex):
        return "different"
    if not same_unit(golds.unit, answers.unit):
        return "different"
    if _brackets(golds.latex, answers.latex) and _is_equal(one, other):
        return "equal"
    return "different" if _differ(one, other) else "unknown"


def _is_point(latex: str) -> bool:
    """Whether all of a formula is one pair of parentheses around a list, whose order counts."""
    text = latex.rpartition("=")[2].strip()
    return text.startswith("(") and "," in text and closing(text, 0, "()") == len(text) - 1


def _is_same_list(one: str, other: str) -> bool:
    """True unless one side is a point, the other a bare list, and their elements differ in the order as
    written."""
    sides = (one, other)
    if any(re.search(r"[(\[{]", side.partition("(")[2] if _is_point(side) else side) for side in sides):
        return True
    lists = [re.findall("[^,;]+", side.rpartition("=")[2].strip().strip("()")) for side in sides]
    if len(lists[0]) != len(lists[1]):
        return True
    return all(compare(*pair) == "equal" for pair in zip(*lists, strict=True))


def _read(latex: str, *, is_complex: bool) -> sympy.Basic | None:
    """The value of a formula; None if any of it cannot be read, or its parts contradict each other."""
    try:
        values = [
            latex2sympy(
                part, is_real=None if is_complex else True, normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=False),
            )
            for part in re.split(r"\\approx", latex)
        ]  # fmt: skip
    except Exception:  # noqa: BLE001  # the parser raises errors of many types
        return None
    if is_complex:
        values = [_with_imaginary_unit(value) for value in values]
    if any(value in (sympy.nan, sympy.zoo) for value in values) or not all(map(_is_consistent, values)):
        return None
    if len(values) > 1 and isinstance(values[0], sympy.Symbol):
        values = values[1:]
    is_bare = _is_number(values[0])
    return values[0] if all(not is_bare or _is_near(values[0], value, 1e-2) for value in values[1:]) else None


def _with_imaginary_unit(value: sympy.Basic) -> sympy.Basic:
    symbols = getattr(value, "free_symbols", ())
    return value.subs({symbol: sympy.I for symbol in symbols if str(symbol) == "i"})


def _is_consistent(value: sympy.Basic) -> bool:
    """False for "8 = 7". A chain that begins with a name, "x = 3 + 3 = 7", is read by its end."""
    sides = _sides(value)
    is_chain = all(map(_is_number, sides))
    return not is_chain or all(_is_near(one, other, 1e-2) for one, other in pairwise(sides))


def _sides(value: sympy.Basic) -> list[sympy.Basic]:
    if isinstance(value, And):
        return [side for part in value._unsorted_args for side in _sides(part)]
    return [value.lhs, value.rhs] if isinstance(value, sympy.Eq) else []


def _is_number(value: sympy.Basic) -> bool:
    return (
        isinstance(value, sympy.Expr)
        and not value.free_symbols
        and not value.atoms(sympy.core.function.AppliedUndef)
    )


def _brackets(gold: str, answer: str) -> bool:
    """False for braces on one side and parentheses on the other: a set is no point."""
    kinds = {side.lstrip()[:2] == "\\{" for side in (gold, answer)}
    others = {side.rpartition("=")[2].lstrip()[:1] in ("(", "[") and "," in side for side in (gold, answer)}
    return not (kinds == {True, False} and True in others)


def _is_equal(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    if any(_is_sum_equation(one) and not _sides(other) for one, other in ((gold, answer), (answer, gold))):
        return False
    if _is_number(gold) and _is_number(answer):
        return _is_near(gold, answer) or _percent(gold, answer)
    gold_set, answer_set = (_as_set(value) for value in (gold, answer))
    if gold_set is not None and answer_set is not None and gold_set == answer_set:
        return True
    is_verified = verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(is_verified) and _agree(gold, answer)


def _is_sum_equation(value: sympy.Basic) -> bool:
    """An equation of which neither side is a name: "x + z = 1" holds more than the 1."""
    sides = _sides(value)
    return bool(sides) and isinstance(sides[0], sympy.Add) and bool(sides[0].free_symbols)


def _as_set(value: sympy.Basic) -> sympy.Set | None:
    """An inequality in one unknown as the set of its solutions; a set as it is; None for anything else."""
    match value:
        case sympy.FiniteSet() if value.args and all(isinstance(part, Relational) for part in value.args):
            parts = [_as_set(part) for part in value.args]
            has_equation = any(isinstance(part, sympy.Eq) for part in value.args)
            return None if None in parts or has_equation else sympy.Union(*parts)
        case sympy.FiniteSet():
            return None
        case sympy.Set():
            return value
        case sympy.Eq(lhs=sympy.Symbol(), rhs=sympy.Set()):
            return _as_set(value.rhs)
        case Relational() | And() if not isinstance(value, sympy.Eq) and len(value.free_symbols) == 1:
            try:
                chain = value._unsorted_args if isinstance(value, And) else [value]
                return sympy.Intersection(*(part.func(*part.args).as_set() for part in chain))
            except Exception:  # noqa: BLE001  # sympy finds no set of solutions
                return None
    return None


def _percent(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    """50\\% is 50, as in MATH's own string match, and is one half."""
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    bare = [
        value.args[0] if isinstance(value, sympy.Mul) and hundredth in value.args else value
        for value in (gold, answer)
    ]
    return bare != [gold, answer] and _is_near(*bare)


def _is_near(one: sympy.Basic, other: sympy.Basic, tolerance: float | None = None) -> bool:
    """Whether two numbers have one value: exactly if they are rational, else relative to their size."""
    is_decimal = any(value.has(sympy.Float) for value in (one, other))
    try:
        values = [value.doit() for value in (one, other)]
        if tolerance is None and not is_decimal and all(value.is_Rational for value in values):
            return bool(values[0] == values[1])
        left, right = (sympy.N(value, _DIGITS) for value in values)
        if not (left.is_number and right.is_number):
            return False
        if left.is_infinite or right.is_infinite:
            return bool(left == right)
        size = max(abs(left), abs(right))
        allowed = tolerance or (_DECIMALS if is_decimal else _EXACT)
        return bool(size == 0 or abs(left - right) <= allowed * size)
    except Exception:  # noqa: BLE001  # no value: an unknown function, a division by zero
        return False


def _agree(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    """What math-verify calls equal holds part by part: it rounds to six places, and 1/3^40 there is
    1/3^41."""
    gold, answer = (_bare(value) for value in (gold, answer))
    if _is_number(gold) and _is_number(answer):
        return _is_near(gold, answer) or _percent(gold, answer)
    match gold, answer:
        case sympy.FiniteSet() | sympy.Tuple() | list(), sympy.FiniteSet() | sympy.Tuple() | list():
            return _parts_agree(gold, answer)
        case sympy.Interval(), sympy.Interval():
            return all(map(_agree, (gold.start, gold.end), (answer.start, answer.end)))
        case sympy.MatrixBase(), sympy.MatrixBase():
            return all(map(_agree, gold.flat(), answer.flat()))
    return not _differ(gold, answer)


def _bare(value: sympy.Basic) -> sympy.Basic:
    """The right side of "x = 5", and a matrix multiplied out."""
    sides = _sides(value)
    value = sides[-1] if sides and is_expr_of_only_symbols(sides[0]) else value
    return value.doit() if isinstance(value, sympy.MatrixExpr) else value


def _parts_agree(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    """Each part has its own partner; the order counts between two tuples."""
    golds, answers = list(gold.args if isinstance(gold, sympy.Basic) else gold), list(answer.args)
    if len(golds) != len(answers):
        return False
    if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return all(map(_agree, golds, answers))
    for part in golds:
        same = (
            other for other in answers if verify(part, other, timeout_seconds=None) and _agree(part, other)
        )
        if (partner := next(same, None)) is None:
            return False
        answers.remove(partner)
    return True


def _differ(gold: sympy.Basic, answer: sympy.Basic) -> bool:
    """Whether both are expressions, the answer in the symbols of the gold, and their values differ at a
    point."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols, key=str)
    if not answer.free_symbols <= set(symbols):
        return False
    points = ({symbol: start + step * i for i, symbol in enumerate(symbols)} for start, step in _POINTS)
    return any(_values_differ(gold, answer, point) for point in points)


def _values_differ(gold: sympy.Basic, answer: sympy.Basic, point: dict[sympy.Symbol, int]) -> bool:
    try:
        values = [sympy.N(value.subs(point).doit(), _DIGITS) for value in (gold, answer)]
        if not all(value.is_number and value.is_finite for value in values):
            return False
        is_decimal = gold.has(sympy.Float) or answer.has(sympy.Float)
        size = max(map(abs, values))
        return bool(abs(values[0] - values[1]) > (_DECIMALS if is_decimal else 1e-9) * size)
    except Exception:  # noqa: BLE001  # no value at this point
        return False
