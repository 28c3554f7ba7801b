"""What can be seen of a prompt and of a reply without asking a model: the numbers that evidence is made of.

All are cheap, and none is special to one benchmark. A fit learns on its own part of the book how much each
says.
"""

from __future__ import annotations

import math
import re

REPLY_FEATURES = ("length", "equal signs", "hedges", "hedges at all", "confidence")
"""Features that are compared with the usual reply of the same model."""
ANSWER_FEATURES = ("answer length", "whole number", "decimal or fraction", "negative", "size", "words")
"""Features of the answer alone, whoever gives it."""
PROMPT_FEATURES = ("length", "numbers")

_HEDGES = (
    *("however", "wait", "mistake", "incorrect", "evaluate again", "reevaluat", "re-evaluat", "let's try"),
    *("let\u2019s try", "contradict", "approximately", "assum", "not possible", "error", "correction"),
    *("correcting", "reexamin", "re-examin", "recheck", "does not"),
)
"""Words by which a model doubts or mends what it wrote."""
_WHOLE, _PART = re.compile(r"-?\d{1,15}"), re.compile(r"-?\d{0,15}(?:\.|/)\d{1,15}")
_HEDGES_COUNTED = 5
_CHARS_READ = 20_000
"""Longer replies are read up to here: what makes them long says enough."""


def reply_features(reply: str, confidence: float | None) -> tuple[float, ...]:
    """The values of `REPLY_FEATURES`; the confidence is NaN where the book has none."""
    text = reply[:_CHARS_READ]
    lower = text.lower()
    hedges = min(sum(map(lower.count, _HEDGES)), _HEDGES_COUNTED)
    return (
        math.log(len(reply) + 1),
        math.log(text.count("=") + 1),
        hedges,
        float(hedges > 0),
        math.nan if confidence is None else confidence,
    )


def answer_features(answer: str | None) -> tuple[float, ...]:
    """The values of `ANSWER_FEATURES`; all zero without an answer."""
    if answer is None:
        return (0.0,) * len(ANSWER_FEATURES)
    is_whole, is_part = _WHOLE.fullmatch(answer) is not None, _PART.fullmatch(answer) is not None
    return (
        math.log(len(answer) + 1),
        float(is_whole),
        float(is_part),
        float(answer.startswith("-")),
        math.log10(abs(int(answer)) + 1) if is_whole else 0.0,
        float(re.search(r"[a-zA-Z]{2}", answer) is not None),
    )


def prompt_features(prompt: str) -> tuple[float, ...]:
    """The values of `PROMPT_FEATURES`."""
    return math.log(len(prompt) + 1), math.log(len(re.findall(r"\d+", prompt)) + 1)
