"""Finds the answer to a mathematical question, compares two as strings, and reads CHAMP's plain notation.

Nothing is evaluated here; `math_compare` does that.
"""

from __future__ import annotations

import re

from r2_serve.grading.formula import formula
from r2_serve.grading.reading import clean, closing, read_answer

MAX_LINE_CHARS = 300
"""The longest text of one line that is taken as the answer itself."""
MAX_WORDS = 8
"""The most words of a name that is taken as the answer itself."""

# -- the answer of a reply -----------------------------------------------------------------------------------

_TAIL = re.compile(r"(?i)(?:\b(?:is|are|equals|be)|'s|(?<![!<>\\])[:=])\s+(?!correct|right)(?=\S)")
_VALUE = re.compile(r"\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]|(?<![\w.,])-?\d[\d,]*(?:\.\d+)?%?", re.DOTALL)
_HEDGE = re.compile(
    r"(?i)\b(?:not|or|either|neither|nor|maybe|perhaps|possibly|probably|about|approximately|around|roughly|almost"
    r"|nearly|between|at (?:most|least)|(?:more|less|fewer|greater|other) than|unless|if|except"
    r"|without|cannot"
    r"|wrong|incorrect)\b|n't\b"
)
_REMARK = re.compile(r"(?i)(?:I hope|this is|note|let me know|hope)\b")
_PROSE = re.compile(r"(?:(?:^|\s)[A-Za-z]{2,}\b.*?){3}", re.DOTALL)
_STOP = re.compile(r"(?<=[\w$)\]}%])[.!]\s+(?=[A-Z])|(?:(?<=\$\$)|(?<=\\\]))\s+(?=[A-Z])")


def math_answer(reply: str) -> str | None:
    """The answer of a reply to a mathematical question; None if none is found.

    If neither a wrapper nor a phrase marks it, the answer is the whole reply if that is a formula or a name
    in a few words. Otherwise it is what follows the last "is" or "=" of the last sentence, or the one value
    in that sentence. A sentence that hedges or denies holds no answer.
    """
    reading = read_answer(reply)
    text = reading.text.strip()
    if not text or _is_bare(text):
        return text or None
    if reading.is_stated and (len(text) > MAX_LINE_CHARS or not _PROSE.search(text)):
        return text
    return _value_of_sentence(text) or (text if reading.is_stated else None)


def _is_bare(text: str) -> bool:
    """Whether all of a text is one formula, or a name in a few words."""
    if len(text) > MAX_LINE_CHARS or ("\n" in text and "\\begin" not in text):
        return False
    is_name = (
        re.fullmatch(r"[^\W\d](?:[^\W\d]|[ '().-])*", text) is not None and len(text.split()) <= MAX_WORDS
    )
    if is_name and not re.search(r"(?i)\b(?:is|are|i|it)\b|n't\b", text):
        return True
    read = formula(text)
    return bool(read.latex or read.base)


def _value_of_sentence(text: str) -> str | None:
    text = text[-2 * MAX_LINE_CHARS :].strip()
    block = text if re.search(r"\\begin|\\\[|\$\$", text) else text.splitlines()[-1]
    sentences = [part for part in _STOP.split(block) if not _REMARK.match(part.strip())]
    sentence = sentences[-1] if sentences else ""
    tails = (sentence[match.end() :] for match in reversed(list(_TAIL.finditer(sentence))))
    values = _VALUE.findall(sentence)
    single = values if len(values) == 1 and not _HEDGE.search(sentence) else []
    for part in (*(tail for tail in tails if tail.count("$") % 2 == 0), *single):
        found = read_answer(part).text
        read = formula(found)
        if read.latex or read.base:
            return found
    return None


# -- the string match of MATH --------------------------------------------------------------------------------


def is_equivalent(answer: str, gold: str) -> bool:
    """Whether two answers are equal after MATH's own normalisation, by which published scores were made.

    It is lax: "5 \\text{ or } 7" is 5.

    Source: `is_equiv`, github.com/hendrycks/math modeling/math_equivalence.py.
    """
    try:
        return normalise(answer) == normalise(gold)
    except ValueError:
        return answer == gold


def normalise(text: str) -> str:
    """MATH's canonical spelling of an answer. Raises: ValueError if the original gives up."""
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise ValueError("two units")
    for old, new in (("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if text.startswith("."):
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    if text.endswith("\\sqrt"):
        raise ValueError("nothing under the root")
    text = _braced_fractions(re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)\Z", r"\\frac{\1}{\2}", text)


def _braced_fractions(text: str) -> str:
    """\\frac12, \\frac1b and \\frac1{72} with braces; not \\frac{72}1, as in the original."""
    head, *tails = text.split("\\frac")
    if any(not tail.startswith("{") and len(tail) < 2 for tail in tails):
        return text
    return "\\frac".join([head, *(tail if tail.startswith("{") else _braced_pair(tail) for tail in tails)])


def _braced_pair(tail: str) -> str:
    numerator, rest = tail[0], tail[1:]
    return f"{{{numerator}}}{rest}" if rest[0] == "{" else f"{{{numerator}}}{{{rest[0]}}}{rest[1:]}"


# -- CHAMP's plain notation ----------------------------------------------------------------------------------

_CALLS = {
    "floor": "{{\\lfloor {0} \\rfloor}}", "ceil": "{{\\lceil {0} \\rceil}}", "sqrt": "\\sqrt{{{0}}}",
    "C": "\\binom{{{0}}}{{{1}}}",
}  # fmt: skip
_CALL = re.compile(r"(?<![A-Za-z\\])(floor|ceil|sqrt|C)\(")


def yes_or_no(text: str) -> str | None:
    """The last "yes" or "no" of a text, in small letters."""
    found = re.findall(r"(?i)\b(yes|no)\b", text)
    return found[-1].lower() if found else None


def plain_text(text: str) -> str:
    """Two answers of one spelling are equal: case, spaces, dollars, \\cdot and trailing stops do not
    count."""
    text = re.sub(r"\\cdot|\\times", "*", re.sub(r"\\left|\\right", "", text))
    text = text.replace("≤", "<=").replace("≥", ">=")
    return re.sub(r"[\s$]+", "", clean(text)).rstrip(".").lower()


def alternatives(gold: str) -> list[str]:
    """The answers that CHAMP's gold allows, without remarks: 100 for "100 (i.e., all values)", and both A and
    B for "A, or equivalently B"."""
    bare = re.sub(r"\s*\(i\.e\.,?[^()]*\)", "", gold)
    return [part.strip() for part in re.split(r",?\s*\bor equivalently\b,?\s*", bare) if part.strip()]


def as_formula(text: str) -> str | None:
    """Plain notation as LaTeX: `2^(n-1)`, `floor(x)`, `sqrt(x)`, `C(n, k)`, `*`. None if words are left."""
    text = clean(text).replace("**", "^")
    while (match := _CALL.search(text)) is not None:
        end = closing(text, match.end() - 1, "()")
        inner = text[match.end() : end].split(",")
        if end < 0 or len(inner) != (2 if match[1] == "C" else 1):
            return None
        text = text[: match.start()] + _CALLS[match[1]].format(*inner) + text[end + 1 :]
    while (start := text.find("^(")) >= 0:
        end = closing(text, start + 1, "()")
        if end < 0:
            return None
        text = f"{text[:start]}^{{{text[start + 2 : end]}}}{text[end + 1 :]}"
    has_words = re.search(r"[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+", " ", text))
    return None if has_words else text.replace("*", " \\cdot ")
