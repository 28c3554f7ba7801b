"""An answer as the formula that is compared: one spelling of LaTeX, plain text and Unicode, without units.

A formula is read in full or not at all. A text that holds words, or signs that the parser would drop, is no
formula.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from r2_serve.grading.reading import clean

MAX_CHARS = 2_000
"""A longer text is no formula: the time to read one grows with its length."""


class Formula(NamedTuple):
    """An answer in the spelling that is compared."""

    latex: str
    """LaTeX that the parser reads in full; empty if words are left, which it would read as products of
    letters."""
    text: str
    """The answer as plain text: small letters, no spaces, no LaTeX text commands, no dollars, no last
    stop."""
    unit: str
    """The unit that was taken off, such as "cm". Units do not count, but "cm" is not "m"."""
    base: str
    """The digits and the base of a number written in one: "314_5"."""


_SYMBOLS = str.maketrans(
    {
        "\u2264": "\\le ", "\u2a7d": "\\le ", "\u2265": "\\ge ", "\u2a7e": "\\ge ", "\u2260": "\\neq ",
        "\u00d7": "\\times ", "\u2715": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ",
        "\u2217": "\\cdot ", "\u00f7": "/", "\u00b1": "\\pm ", "\u221e": "\\infty ", "\u03c0": "\\pi ",
        "\u03b8": "\\theta ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ",
        "\u2248": "\\approx ", "\u211d": "\\mathbb{R}",
        "\u2205": "\\emptyset ", "\u00d8": "\\emptyset ", "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}", "\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}", "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00b0": "^\\circ ", **dict.fromkeys("\u20ac\u00a3\u00a5\u20b9\u20bd", ""),
    }
)  # fmt: skip
_END = "(?![a-zA-Z])"
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|sqrt|pi|arcsin|arccos|arctan|theta|alpha|frac"
_SPELLINGS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        # commands that only change how a formula looks
        (rf"\\(?:left|right|[bB]igg?[lr]?){_END}\s*\.?", ""),
        (rf"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits){_END}", ""),
        (rf"\\[dtc]frac{_END}", r"\\frac"),
        (r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
        (r"\\(?:mathrm|mathit|mathbf|mathsf|bm|boldsymbol)\s*\{([a-zA-Z0-9])\}", r"\1"),
        (r"\\(?:math(?:rm|it|bf|sf)|operatorname\*?|[mh]box|text(?:bf|it|rm|sf|normal))(?=\s*\{)", r"\\text"),
        # other names of one sign
        (rf"\\(?:varnothing|O){_END}|\\\{{\s*\\\}}", r"\\emptyset"),
        (rf"\\(?:leqslant|leqq){_END}|<=", r"\\le "),
        (rf"\\(?:geqslant|geqq){_END}|>=", r"\\ge "),
        (rf"\\(?:approxeq|simeq){_END}", r"\\approx "),
        (r"!=", r"\\neq "), (r"\*\*", "^"), (r"\u221a\s*(\d+|[a-z])", r"\\sqrt{\1}"), (r"\u221a", r"\\sqrt"),
        # degrees, money, blanks, separators of thousands
        (rf"\\degree{_END}", r"^\\circ"), (r"\^\s*\{?\s*\\circ\s*\}?\s*[CF]?(?![a-z])", ""),
        (rf"\\?\$|\\(?:euro|pounds){_END}", ""),
        (r"(?<=\d)\s*(?:\{\s*,\s*\}|,?\\[!,;: ]|\\thinspace|~|\\,)+\s*(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)['\u2019](?=\d{3}(?!\d))", ""),
        (r"(?<![\w.])(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])", r"\1 \\times 10^{\2}"),
        (r"\{\s*,\s*\}", ","),
        (rf"(?<!\\)\\[,;:! ]|~"
         rf"|\\(?:thinspace|quad|qquad|enspace|hspace\{{[^{{}}]*\}}|negthinspace){_END}", " "),
        # lists and percentages
        (r"(?i)\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![a-zA-Z\\]),?\s*(?:and|or)(?![a-zA-Z])"
         r"|(?<=[\d)}])\s*or(?=[a-zA-Z(])", ", "),
        (r",\s*,", ","), (r"\\text\s*\{\s*\}", ""),
        (r"(?i)\\text\{\s*(?:percent(?:age)?|per cent|pct)\s*\}"
         r"|(?<=\d)\s*(?:percent(?:age)?|per cent|pct)\b", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        # numbers and functions
        (r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))",
         lambda match: _repeating(match[1], match[2], match[3] or match[4])),
        (r"(?i)(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty"),
        (rf"(?<![a-zA-Z\\])({_FUNCTIONS}){_END}", r"\\\1"),
        (r"\\(frac|sqrt)\s+(?=[\d{])", r"\\\1"), (r"\\sqrt\s*(\d|[a-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\log_(\w)\s*(?=[\w(\\])", r"\\log_{\1} "), (r"(?<!\d)\.(?=\d)", "0."),
    )
)  # fmt: skip
"""Rewritings, in this order."""

_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])|(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?!\d)")
_IN_BRACKETS = re.compile(r"[(\[{].*,|,.*[)\]}]")
_INTERVAL = re.compile(r"([\[\]])([^\[\](),;{}]+)([,;])([^\[\](),;{}]+)([\[\]])")
_BASED = re.compile(r"\(?\s*(-?[0-9A-F]+)\s*\)?\s*_\s*\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}*")
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_BASES = {name: str(base) for base, name in enumerate(_BASE_NAMES, 2)}
_COMMAND = re.compile(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|_\{[^{}]*\}")
_WORD = re.compile(
    r"[A-Za-z]{4,}|(?<![A-Za-z])(?:or|to|not|if|is|are|the|an|and|for|by|of|at|we|it|no|yes)(?![A-Za-z])"
)
_DROPPED = re.compile(r"\\text\b|\d \d|\d\.\d+\.\d|[\d})]_|\?|\d:\d\d:|dots|\.\.|\u2026")
"""What the parser would drop or read as a product: text, two numbers side by side, a base, "12:00:00"."""


def formula(answer: str) -> Formula:
    """`answer`, without its wrappers, in the spelling that is compared."""
    text = clean(answer)
    plain = plain_answer(text)
    if len(text) > MAX_CHARS:
        return Formula("", plain, "", "")
    text = text if "\\begin" in text else re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    text = text.translate(_SYMBOLS)
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    text = re.sub(r"\s+", " ", text).strip().removesuffix("\\\\").rstrip("; ")
    text = text.removesuffix(".").rstrip() if not text.endswith("..") else text
    if not _IN_BRACKETS.search(re.sub(r"\\[a-zA-Z]+\{[^{}]*\}", "", text)):
        text = _GROUPED.sub(lambda number: re.sub("[, ]", "", number[0]), text)
    text, unit = _without_unit(text)
    text = re.sub(r"^(-?\d+) +(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = _INTERVAL.sub(_standard_interval, text)
    based = _BASED.fullmatch(text)
    if based is not None:
        return Formula("", plain, unit, f"{based[1]}_{_BASES.get(based[2].lower(), based[2])}")
    is_readable = not _WORD.search(_COMMAND.sub(" ", text)) and not _DROPPED.search(text)
    return Formula(text if is_readable else "", plain, unit, "")


def plain_answer(text: str) -> str:
    """Two answers of one plain text are equal: case, spaces, dollars and LaTeX text commands do not count."""
    text = re.sub(r"\\(?:text\w*|math(?:rm|bf|it|sf)|operatorname|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|[!,;: ])|[\s$~]+|\\q?quad", "", re.sub(r"\\[dt]frac", r"\\frac", text))
    text = (text if text.endswith("..") else text.removesuffix(".")).strip("\"'")
    text = text[1:-1] if re.fullmatch(r"\(\w\)", text) else text
    return text if len(text) == 1 else text.casefold()


def _repeating(whole: str, fixed: str, period: str) -> str:
    """0.1\\overline{6} as the fraction that it is."""
    digits = f"{whole or 0}{fixed}"
    value = Fraction(int(digits + period) - int(digits), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _standard_interval(match: re.Match[str]) -> str:
    """]a, b[ as (a, b)."""
    opening, low, comma, high, end = match.groups()
    return f"{'(' if opening == ']' else '['}{low}{comma}{high}{')' if end == '[' else ']'}"


# -- units ---------------------------------------------------------------------------------------------------

_UNIT = re.compile(
    r"^(?P<head>.*[\d)}\]%!])\s*(?:\\text\s*\{\s*(?P<text>[^{}\d]+?)\s*\}"
    r"|\s(?P<words>[a-zA-Z]{2,}(?:[ /.-]+[a-zA-Z]{2,}){0,3})|(?<=\d)(?P<glued>cm|mm|km|kg|ft|mph"
    r"|lbs?|min|m(?=\^)))"
    r"\s*(?P<power>(?:\^\s*\{?[23]\}?)?)\s*\.?$",
    re.DOTALL,
)
_NO_UNIT = re.compile(
    r"\b(?:or|to|not|if|is|are|was|unless|but|than|minus|plus|times|over|thousand|million|"
    r"billion|trillion|hundred|dozen|pi|either|neither|about|around|approximately|roughly|"
    r"maybe|perhaps|possibly|probably|nearly|almost|between|through|until|above|below|under|"
    r"mod|modulo|half|quarter|third|thirds|halves|fourths|factorial|where|when|for|all|any|"
    r"with|isn|wrong|incorrect|nor|versus|vs|base|divided|multiplied|squared|cubed|because|"
    r"otherwise|except|without|least|most|more|less|greater|fewer|choose)\b"
)
"""Words after a number that belong to its value: without them the value would be read in part."""
_ALIASES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "yd": "yard",
    "km": "kilometer kilometre", "in": "inch", "ft": "foot feet", "mi": "mile", "s": "second sec",
    "min": "minute", "h": "hour hr", "day": "", "week": "", "month": "", "yr": "year", "g": "gram",
    "kg": "kilogram", "lb": "pound", "cent": "", "dollar": "usd", "deg": "degree", "rad": "radian",
    "l": "liter litre", "ml": "milliliter",
}  # fmt: skip
_UNITS = {
    f"{alias}{end}": name
    for name, aliases in _ALIASES.items()
    for alias in (name, *aliases.split())
    for end in ("", "s", "es")
}


def _without_unit(text: str) -> tuple[str, str]:
    """`text` and the unit at its end. Nothing is left if two quantities stand in it, as in "3 hours 25
    minutes"."""
    match = _UNIT.match(text)
    if match is None:
        return text, ""
    unit = (match["text"] or match["words"] or match["glued"]).lower()
    words = re.findall(r"[a-z]+", unit)
    if not words or len(words) > 5 or _NO_UNIT.search(" ".join(words)):
        return text, ""
    return ("", "") if "\\text" in match["head"] else (match["head"].strip(), unit + match["power"])


def same_unit(one: str, other: str) -> bool:
    """Whether two units may be the same. MATH does not count units; those that are known to differ do."""
    first, second = (_UNITS.get(re.sub(r"[^a-z]", "", unit)) for unit in (one, other))
    return first is None or second is None or first == second
