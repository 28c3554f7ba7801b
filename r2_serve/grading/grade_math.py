"""Text side of grading mathematics: find the final answer, compare two answers as strings, read CHAMP's plain notation.

Nothing here evaluates anything; symbolic comparison is `math_workers`'.
"""

from __future__ import annotations

import re

_FINAL = re.compile(r"(?i)\b(?:final answer|answer)(?: is|:)\s*:?\s*(.+?)\s*$", re.MULTILINE)
MAX_LINE_CHARS = 300
"""A one-line reply up to this long is taken as the answer itself."""


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` or `\\fbox{...}`, braces balanced; None without one.

    Source: `last_boxed_only_string`, github.com/hendrycks/math modeling/dataset/util.py.
    """
    start = max(text.rfind("\\boxed"), -1)
    if start < 0:
        start = text.rfind("\\fbox")
    opening = text.find("{", start)
    if start < 0 or opening < 0:
        return None
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[opening + 1 : i]
    return None


def final_answer(text: str) -> str | None:
    """The stated answer: the last box, else what follows the last "answer is", else a reply of one line, else None."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    stated = _FINAL.findall(text)
    found = stated[-1] if stated else text.strip()
    if not found or "\n" in found or len(found) > MAX_LINE_CHARS:
        return None
    return _without_dollars(found.rstrip(".").strip()) or None


def _without_dollars(text: str) -> str:
    inner = re.fullmatch(r"\\\((.*)\\\)|\\\[(.*)\\\]|\$\$?([^$]*)\$?\$", text, re.DOTALL)
    return next((group for group in inner.groups() if group is not None), text).strip() if inner else text


# -- the string match of MATH -------------------------------------------------------------------------------------


def is_equivalent(answer: str, gold: str) -> bool:
    """Equal after MATH's own normalisation. Comparable with published MATH scores, and strict: 0.5 is 1/2, 0.25 not 1/4.

    Source: `is_equiv`, github.com/hendrycks/math modeling/math_equivalence.py.
    """
    try:
        return normalise(answer) == normalise(gold)
    except ValueError:
        return answer == gold


def normalise(text: str) -> str:
    """MATH's canonical spelling of an answer. Raises: ValueError where the original gives up."""
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
    ):
        text = text.replace(old, new)
    for dropped in ("^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(dropped, "")
    text = _without_unit(text)
    for old, new in (("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if text.startswith("."):
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    return _slash_as_fraction(text)


def _without_unit(text: str) -> str:
    parts = text.split("\\text{ ")
    if len(parts) > 2:
        raise ValueError("two units")
    return parts[0]


def _braced_roots(text: str) -> str:
    """\\sqrt3 as \\sqrt{3}."""
    if text.endswith("\\sqrt"):
        raise ValueError("nothing under the root")
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _braced_fractions(text: str) -> str:
    """\\frac12, \\frac1b and \\frac1{72} with braces; not \\frac{72}1, as in the original."""
    head, *tails = text.split("\\frac")
    if any(not tail.startswith("{") and len(tail) < 2 for tail in tails):
        return text
    return "".join([head, *("\\frac" + (tail if tail[0] == "{" else _braced_pair(tail)) for tail in tails)])


def _braced_pair(tail: str) -> str:
    numerator, rest = tail[0], tail[1:]
    return f"{{{numerator}}}{rest}" if rest[0] == "{" else f"{{{numerator}}}{{{rest[0]}}}{rest[1:]}"


def _slash_as_fraction(text: str) -> str:
    match = re.fullmatch(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)", text)
    return f"\\frac{{{match[1]}}}{{{match[2]}}}" if match else text


# -- CHAMP's plain notation ---------------------------------------------------------------------------------------

_YES_NO = re.compile(r"(?i)\b(yes|no)\b")
_MINUS = "\u2212"
_VARIABLES = frozenset("abcdfghjklmnopqrstuvwxyzABCDFGHJKLMNOPQRSTUVWXYZ")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_CALLS = {
    "floor": "{{\\lfloor {0} \\rfloor}}",
    "ceil": "{{\\lceil {0} \\rceil}}",
    "sqrt": "\\sqrt{{{0}}}",
    "C": "\\binom{{{0}}}{{{1}}}",
}
_CALL = re.compile(r"(?<![A-Za-z\\])(floor|ceil|sqrt|C)\(")


def yes_or_no(text: str) -> str | None:
    """The last "yes" or "no" of a text, in lower case."""
    found = _YES_NO.findall(text)
    return found[-1].lower() if found else None


def plain_text(text: str) -> str:
    """Two answers of one spelling are equal: case, spaces, dollars, \\cdot and trailing stops do not count."""
    for old, new in (
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("\\left", ""),
        ("\\right", ""),
        ("≤", "<="),
        ("≥", ">="),
        (_MINUS, "-"),
    ):
        text = text.replace(old, new)
    return re.sub(r"[\s$]+", "", text).rstrip(".").lower()


def alternatives(gold: str) -> list[str]:
    """CHAMP's gold without its remarks: "100 (i.e., all values)" is 100; "A, or equivalently B" is A and is B."""
    bare = re.sub(r"\s*\(i\.e\.,?[^()]*\)", "", gold)
    return [part.strip() for part in re.split(r",?\s*\bor equivalently\b,?\s*", bare) if part.strip()]


def as_formula(text: str) -> str | None:
    """Plain notation as LaTeX: `2^(n-1)`, `floor(x)`, `sqrt(x)`, `C(n, k)`, `*`. None where words are left, as a
    parser would read a word as a product of letters, or drop it, and compare what nobody wrote."""
    text = text.replace(_MINUS, "-").replace("**", "^")
    while (match := _CALL.search(text)) is not None:
        end = _closing(text, match.end() - 1)
        inner = text[match.end() : end].split(",")
        if end < 0 or len(inner) != (2 if match[1] == "C" else 1):
            return None
        text = text[: match.start()] + _CALLS[match[1]].format(*inner) + text[end + 1 :]
    while (start := text.find("^(")) >= 0:
        end = _closing(text, start + 1)
        if end < 0:
            return None
        text = f"{text[:start]}^{{{text[start + 2 : end]}}}{text[end + 1 :]}"
    return None if _WORD.search(_COMMAND.sub(" ", text)) else text.replace("*", " \\cdot ")


def letters(formula: str) -> frozenset[str]:
    """The variables of a formula: what a faithful reading of it must mention (e and i may be constants)."""
    return frozenset(_COMMAND.sub(" ", formula)) & _VARIABLES


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`, or -1."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return -1
