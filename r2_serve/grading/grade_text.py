"""Graders that read: CommonsenseQA letters, SCAN action sequences, MuSiQue spans, whole numbers. Pure functions.

Nothing but the standard library is imported: `export` hands this file to other evaluation tools as it stands.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# -- CommonsenseQA ------------------------------------------------------------------------------------------------

_LETTER = r"[*_`\s]*[(\[]?\s*([A-Z])\s*[)\]]?(?![A-Za-z0-9'\u2019])"
_STATED = re.compile(rf"(?:(?i:answer|choice|option)(?i:\s+is)?|\\(?:boxed|text)\{{)[*_`]*\s*[:=]?{_LETTER}")
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_LINE = re.compile(r"(?m)^[\s*_`\"']*([A-Z])(?:[.):*_`\"'](?![A-Za-z0-9]).*|\s*)$")


def last_letter(answer: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The letter stated last, by the first of these patterns that occurs; None where none does ("unparsed").

    1. after "answer is", "answer:", "option", "choice" or in a box: `the answer is (B)`, `Answer: B`, `\\boxed{B}`;
    2. in brackets: `(B)`;
    3. at the start of a line, alone or before a stop: `B`, `B. library`;
    4. the reply is word for word the text of one choice, articles, case and punctuation aside.
    A capital letter inside a sentence is not an answer: "A" is an article. A letter that is no choice is unparsed.
    """
    letters = set(choices) if choices else set(string.ascii_uppercase[:5])
    for pattern in (_STATED, _BRACKETED, _LINE):
        found = [letter for letter in pattern.findall(answer) if letter in letters]
        if found:
            return str(found[-1])
    words = _normalise_span(answer)
    same = [letter for letter, text in (choices or {}).items() if words and _normalise_span(text) == words]
    return same[0] if len(same) == 1 else None


# -- SCAN ---------------------------------------------------------------------------------------------------------

SCAN_WORDS = {
    "walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP",
    "lturn": "I_TURN_LEFT", "turn_left": "I_TURN_LEFT", "left_turn": "I_TURN_LEFT", "turnleft": "I_TURN_LEFT",
    "rturn": "I_TURN_RIGHT", "turn_right": "I_TURN_RIGHT", "right_turn": "I_TURN_RIGHT", "turnright": "I_TURN_RIGHT",
}  # fmt: skip
"""What an action may be called, besides its own name: the paper's figure (LTURN, JUMP) and plain words ("turn left").
Case and an `I_` in front do not count."""
_SCAN_LEAD = re.compile(r"(?i)\b(?:out|output|actions?|answer|sequence)\s*(?::|\bis\b:?)")


def scan_actions(answer: str) -> tuple[str, ...] | None:
    """The action sequence of a reply, in official names; None where any word of it is not an action.

    Read is what follows the last "OUT:", "Actions:" or "Answer:", else everything. Commas, semicolons, arrows, quotes,
    brackets and stops separate; numbering ("1.") is dropped; "turn left" and "left turn" are one action.
    """
    leads = list(_SCAN_LEAD.finditer(answer))
    text = answer[leads[-1].end() :] if leads else answer
    text = re.sub(r"->|→|[,;.\"'`*\[\](){}\n\t]|\\boxed", " ", text.lower())
    text = re.sub(r"(?<!\S)[0-9]+(?!\S)", " ", text)
    text = re.sub(r"\b(turn|left|right)[ -]+(left|right|turn)\b", r"\1_\2", text)
    names = [token.removeprefix("i_") for token in text.split()]
    if not names or any(name not in SCAN_WORDS for name in names):
        return None
    return tuple(SCAN_WORDS[name] for name in names)


# -- MuSiQue ------------------------------------------------------------------------------------------------------


def span_scores(answer: str, golds: Iterable[str]) -> tuple[float, float]:
    """(exact match, F1), each the best over the answer and its aliases, as MuSiQue's official scorer.

    Source: `AnswerMetric`, github.com/StonyBrookNLP/musique metrics/answer.py (SQuAD's normalisation).
    """
    golds = list(golds)
    exact = max(float(_normalise_span(answer) == _normalise_span(gold)) for gold in golds)
    return exact, max(_span_f1(answer, gold) for gold in golds)


def _normalise_span(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; in that order."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _span_f1(answer: str, gold: str) -> float:
    answer_tokens, gold_tokens = _normalise_span(answer).split(), _normalise_span(gold).split()
    if not answer_tokens or not gold_tokens:
        return float(answer_tokens == gold_tokens)
    num_same = (Counter(answer_tokens) & Counter(gold_tokens)).total()
    precision, recall = num_same / len(answer_tokens), num_same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall) if num_same else 0.0


# -- numbers ------------------------------------------------------------------------------------------------------


def last_number(answer: str) -> str | None:
    """The last whole number of an answer, without thousands separators."""
    numbers = re.findall(r"(?<![0-9.])-?[0-9]+(?![0-9]|\.[0-9])", answer.replace(",", ""))
    return str(numbers[-1]) if numbers else None


# -- all of them, on exported rows --------------------------------------------------------------------------------


def is_right(row: Mapping[str, Any], answer: str) -> bool:
    """The verdict on an answer to a row of `export`: `benchmark`, `gold`, and csqa's `choices`."""
    gold = row["gold"]
    match row["benchmark"]:
        case "csqa":
            return last_letter(answer, row["choices"]) == str(gold)
        case "scan":
            actions = scan_actions(answer)
            return actions is not None and actions == scan_actions(gold)
        case "musique":
            return bool(answer.strip()) and span_scores(answer, gold)[0] == 1.0
        case "words":
            return last_number(answer) == str(gold)
    raise ValueError(f"no text grader for {row['benchmark']!r}")
