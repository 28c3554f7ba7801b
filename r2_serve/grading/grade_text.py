"""Reads CommonsenseQA letters, SCAN action sequences, MuSiQue spans and whole numbers out of replies.

All are pure functions. Only the standard library and `reading` are imported, because `lab.evaluation.export`
copies these files for other evaluation tools.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from r2_serve.grading.reading import clean, read_answer

# -- CommonsenseQA -------------------------------------------------------------------------------------------

_LETTER = r"[*_`\"']*\(?\[?[*_]*([A-Z])[*_]*\]?\)?[*_`\"']*(?![A-Za-z0-9'\u2019])"
_STARTS = re.compile(rf"(?:(?i:option|choice|letter|answer)[ :]+)?{_LETTER}[.:,]?[*_]*")
_CHOSEN = re.compile(
    r"(?:(?i:\b(?:choose|pick|select|choosing|go(?:ing)? with|opt for|must be|should be|would be)\s+"
    rf"(?:option\s+|choice\s+)?){_LETTER}"
    rf"|(?i:\b(?:it['\u2019]s|it is|that['\u2019]s|so|hence|thus|therefore),?\s+){_LETTER}(?=[\s.!*]*$)"
    rf"|(?:^|(?<=[\s(\[*])){_LETTER}"
    r"(?:(?!\b[A-Z]\b|\bnot\b|n't\b|\bwrong\b|\bincorrect\b)[^.\n]){0,60}?"
    r"(?i:\bis (?:the |a |clearly |definitely )*(?:correct|right|best|answer|most)\b))",
    re.MULTILINE,
)
_NAMED = re.compile(rf"(?:(?i:\b(?:option|choice)\s+){_LETTER}|[(\[]([A-Z])[)\]])")
_LINE = re.compile(r"(?m)^[ \t*_`\"'>-]*([A-Z])(?:[.):*_`\"'](?![A-Za-z0-9]).*|\s+-\s.*|\s*)$")
_REJECTED = re.compile(
    r"(?i)(?:(?!\b(?:because|since|as|while|whereas)\b)[^.,;\n]){0,40}?\b(?:(?:is|are|was|does|do|ca|can|would|could|should|seems?)(?:n't\b|\s+not\b|not\b)"
    r"|(?:is|are|was|seems?)\s+(?:wrong|incorrect|unlikely|impossible|too\b|eliminated|ruled out|excluded)"
    r"|(?:can be|cannot be)\s+(?:eliminated|ruled out|excluded))"
)
_REFUSAL = re.compile(
    r"(?i)(?:\bnot|n't|neither|nor|except|instead of|rather than|than|eliminat\w+|rul\w+ out)\s*(?:be\s+)?"
    r"(?:option\s+|choice\s+)?[(\[*]*$"
)
_OTHER = r"\W*(?i:maybe |perhaps |possibly |even |else )?(?i:option |choice )?[(\[*]*[A-Z]\b(?!['\u2019])"
_SECOND = re.compile(rf"(?:(?i:or|and(?:/or)?|vs)\b|[/&+,|(\[]){_OTHER}|[A-Z]\W*$|[^.\n]*?\b(?i:or){_OTHER}")
"""What follows a letter where a reply names two."""


def last_letter(answer: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The letter that a reply chooses; None if it chooses none, or more than one ("unparsed"). In this order:

    1. the stated answer (a tag, a JSON field, a box, "the answer is"): it begins with the letter, or is one
       choice's text;
    2. "I choose B", "B is correct"; the last of them;
    3. the last line is a letter, alone or before a stop or the choice's text;
    4. the one letter that stands in brackets, after "option" or at the start of a line, and is not rejected;
    5. the reply is word for word the text of one choice, articles, case and punctuation aside.
    A capital letter inside a sentence is not an answer: "A" is an article.
    """
    labels = dict(choices) if choices else dict.fromkeys(string.ascii_uppercase[:5], "")
    reading = read_answer(answer)
    text = reading.text.strip()
    text = text.upper() if len(re.sub(r"[\W_]", "", text)) == 1 else text
    if reading.is_stated or "\n" not in text:
        found = _leading_letter(text, labels)
        if found or reading.is_stated:
            return found or (_chosen_letter(text, labels) if found is None else None)
    chosen = _chosen_letter(text, labels)
    if chosen:
        return chosen
    lines = text.splitlines()
    for line in (lines[-1], lines[0]) if lines else ():
        alone = _LINE.fullmatch(line)
        if alone is not None and alone[1] in labels:
            return _leading_letter(line.strip(" *_`\"'>-"), labels) or None
    for pattern in (_NAMED, _LINE):
        named = [match for match in pattern.finditer(text) if match[match.lastindex or 1] in labels]
        kept = {match[match.lastindex or 1] for match in named if not _is_refused(text, match)}
        if named:
            return kept.pop() if len(kept) == 1 else None
    return _of_text(text, labels)


def _chosen_letter(text: str, labels: Mapping[str, str]) -> str | None:
    """The last letter that a sentence of `text` chooses, as in "I pick B" or "so B is correct"."""
    matches = [match for match in _CHOSEN.finditer(text) if not _is_refused(text, match)]
    chosen = [letter for match in matches if (letter := next(filter(None, match.groups()))) in labels]
    return chosen[-1] if chosen else None


def _leading_letter(text: str, labels: Mapping[str, str]) -> str | None:
    """The letter that `text` begins with, or whose choice it is; "" if it names two or contradicts itself."""
    match = _STARTS.match(text)
    if match is None or match[1] not in labels:
        return _of_text(text, labels)
    letter, rest = match[1], text[match.end() :].strip(" -\u2013\u2014:.*_`\"'")
    if _SECOND.match(rest) or _REJECTED.match(text, match.end()):
        return ""
    named = _of_text(rest.partition("\n")[0], labels)
    if named is not None and named != letter:
        return named if match[0] == "A" and labels[letter] else ""
    is_sentence = match[0] in ("A", "I") and rest[:1].islower() and named is None
    return None if is_sentence and len(rest.split()) > 1 else letter


def _is_refused(text: str, match: re.Match[str]) -> bool:
    return bool(
        _REJECTED.match(text, match.end()) or _REFUSAL.search(text, max(0, match.start() - 60), match.start())
    )


def _of_text(text: str, labels: Mapping[str, str]) -> str | None:
    words = normalised_span(text)
    same = [letter for letter, choice in labels.items() if words and normalised_span(choice) == words]
    return same[0] if len(same) == 1 else None


# -- SCAN ----------------------------------------------------------------------------------------------------

SCAN_WORDS = {
    "walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP",
    "lturn": "I_TURN_LEFT", "turn_left": "I_TURN_LEFT", "left_turn": "I_TURN_LEFT", "turnleft": "I_TURN_LEFT",
    "rturn": "I_TURN_RIGHT", "turn_right": "I_TURN_RIGHT", "right_turn": "I_TURN_RIGHT",
    "turnright": "I_TURN_RIGHT",
}  # fmt: skip
"""Other names of an action: those of the paper's figure (LTURN, JUMP) and plain words ("turn left"). Case
and a leading `I_` do not count."""
_SCAN_LEAD = re.compile(r"(?i)\b(?:out|output|actions?|answer|sequence)[*_\"']*\s*(?::|\bis\b:?)[*_]*")
_BULLET = re.compile(r"(?m)^[ \t>]*[-*+\u2022\u2023\u25e6\u00b7\u2013\u2014][ \t]+")


def scan_actions(answer: str) -> tuple[str, ...] | None:
    """The action sequence of a reply, in official names; None if any word of it is not an action.

    The stated answer is read in full, or what follows the last "OUT:", "Actions:" or "Answer:", or else the
    whole reply. Commas, semicolons, arrows, quotes, brackets and stops separate actions. Bullets are dropped,
    and so are numbers of lines that count from 1.
    """
    text = read_answer(answer, is_rest=True).text
    leads = list(_SCAN_LEAD.finditer(text))
    text = read_answer(text[leads[-1].end() :], is_rest=True).text if leads else text
    text = _BULLET.sub(" ", text.replace("\\_", "_"))
    text = re.sub(r"(?<![\w*])\*{1,3}(?=\w)|(?<=\w)\*{1,3}(?![\w*])", "", text)
    text = text.replace("...", "\u2026")
    text = re.sub(r"->|→|\\(?:rightarrow|to|quad|text\w*)(?![a-z])", " ", text.lower())
    text = re.sub(r"(?<!\S)(?:step\s+)?\(?([0-9]+)([.):])(?=\s+\S)", r"\1\2", text)
    numbers = re.findall(r"(?<!\S)([0-9]+)[.):](?=\s+\S)", text)
    first = int(numbers[0][:9]) if numbers else 1
    if first <= 2 and numbers == [str(i) for i in range(first, first + len(numbers))]:
        text = re.sub(r"(?<!\S)[0-9]+[.):](?=\s+\S)", " ", text)
    text = re.sub(r"[,;.\"'`\[\](){}\n\t$]", " ", text)
    text = re.sub(r"\b(turn|left|right)[ -]+(left|right|turn)\b", r"\1_\2", text)
    if "\u2026" in text:
        return None
    names = [token.removeprefix("i_") for token in text.split()]
    if not names or any(name not in SCAN_WORDS for name in names):
        return None
    return tuple(SCAN_WORDS[name] for name in names)


# -- MuSiQue -------------------------------------------------------------------------------------------------

_ABSTAINS = re.compile(
    r"(?i)\b(?:un-?answerable|not answerable|can(?:not|'t| not) be (?:answered|determined|known)"
    r"|insufficient|no answer"
    r"|not (?:enough|sufficient) (?:information|context)|(?:is|are) not (?:mentioned|stated"
    r"|specified|provided|given)"
    r"|(?:do not|don't|cannot|can't) (?:know|tell|answer|determine)|unknown|n/?a)\b"
)


def span_scores(answer: str, golds: Iterable[str]) -> tuple[float, float]:
    """(exact match, F1), each the best over the answer and its aliases, as MuSiQue's official scorer.

    Source: `AnswerMetric`, github.com/StonyBrookNLP/musique metrics/answer.py (SQuAD's normalisation).
    """
    text, golds = read_answer(answer).text, [clean(gold) for gold in golds]
    exact = max(float(normalised_span(text) == normalised_span(gold)) for gold in golds)
    return exact, max(_span_f1(text, gold) for gold in golds)


def abstains(answer: str) -> bool:
    """Whether a reply says that the question cannot be answered: "unanswerable", "not enough information"."""
    return bool(_ABSTAINS.search(read_answer(answer).text))


def normalised_span(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; in that order."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _span_f1(answer: str, gold: str) -> float:
    answer_tokens, gold_tokens = normalised_span(answer).split(), normalised_span(gold).split()
    if not answer_tokens or not gold_tokens:
        return float(answer_tokens == gold_tokens)
    num_same = (Counter(answer_tokens) & Counter(gold_tokens)).total()
    precision, recall = num_same / len(answer_tokens), num_same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall) if num_same else 0.0


# -- numbers -------------------------------------------------------------------------------------------------

_WHOLE = re.compile(
    r"(?<![\w.])-?(?:[1-9][0-9]{0,2}(?:(?:,|\{,\}|\\,|\\!,?|['\u2019])[0-9]{3})+(?![0-9,])|[0-9]+)"
)
_SPACED = re.compile(r"[^0-9]*?-?[0-9]{1,3}(?: [0-9]{3})+(?![ ]?[0-9])[^0-9]*")
"""A text whose only number has spaces between its thousands."""
_PART = re.compile(
    r"(?i)[km]\b|\s*(?:[-*/!\u2013\u2014](?!\s*$|\*|\s*[a-z(])|[+^\u00d7\u00f7\u00b7]|\.[0-9]|[0-9,]*\.[0-9]|e[0-9+-]"
    r"|\d|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u207f\u2150-\u215e]|:[0-9]|(?:x|times|plus|minus)\s+-?[0-9]"
    r"|\\(?:frac|cdot|times|div|sqrt|pm|overline)|hundred|thousand|million|billion|trillion|dozen|half"
    r"|or (?:more|less|fewer|so|maybe|perhaps|-?[0-9$\\])"
    r"|and a (?:half|third|quarter)|at (?:least|most)|squared|cubed|factorial|[a-z]+ or so\b)"
)
"""What follows a number that is read in part: an operator, a decimal, a word of its size."""
_HEDGED = re.compile(
    r"(?i)(?:[0-9]e[-+]?|[0-9]\s*(?:or|to|and|x|times|plus|minus|over|(?:divided|multiplied) by"
    r"|[-/+*^:\u2013\u2014\u00d7\u00f7])"
    r"|\b(?:not|n't|than|about|approximately|around|roughly|almost|nearly|or|either|probably|maybe|perhaps"
    r"|possibly|at least|at most|up to|over|under|above|below|circa|approx\.?)"
    r"|[\u221a\u221b\u2248\u2243\u00b1\u2264\u2265\u2260~<]|(?<![-=])>|\\(?:sqrt|approx|sim|pm|leq?|geq?|[lg]t|neq?|frac)\b\{?"
    r"|\\frac\{[^{}]*\}\{)"
    r"\s*[*_$({]*$"
)
"""What stands before a number that is a bound, a guess, or a part of a larger expression."""
_SAYS = re.compile(r"(?i)\b(?:is|are|be|get|answer|equals)\s*$")


def last_number(answer: str) -> str | None:
    """The last whole number of the stated answer, or else of the reply, without thousands separators.

    None if that number is only a part: of a decimal, of a sum or fraction without "=", of "5 or 7",
    or of "not 8".
    """
    text = read_answer(answer).text
    text = re.sub(r"(?<=[0-9]):00(?![0-9:])", "", text)
    text = re.sub(r"(?<=[0-9]) (?=[0-9])", "", text) if _SPACED.fullmatch(text) else text
    numbers = list(_WHOLE.finditer(text))
    if not numbers:
        return None
    while len(numbers) > 1 and re.search(
        r"(?i)\b(?:not|rather than|instead of)\s*$", text[: numbers[-1].start()]
    ):
        numbers.pop()
    last = numbers[-1]
    decimal = re.match(r"\.([0-9]+)", text[last.end() :])
    before, after = text[: last.start()], text[last.end() + (decimal.end() if decimal else 0) :]
    if last[0].startswith("-") and re.search(r"[\w)]\s*$", before) and not _SAYS.search(before):
        return None
    if (decimal and decimal[1].strip("0")) or is_part(before, after):
        return None
    sign = "-" if last[0].startswith("-") else ""
    digits = re.sub(r"[^0-9]", "", last[0]).lstrip("0")
    return f"{sign}{digits}" if digits else "0"


def is_part(before: str, after: str) -> bool:
    """Whether the number between two texts is a part of a larger expression, a bound or a guess.

    The 5 of "3,5" is a part too, as the comma may be a decimal one.
    """
    if re.search(r"(?<![0-9,])[0-9]+,$", before):
        return True
    return _HEDGED.search(before) is not None or _PART.match(after) is not None


# -- everyday problems ---------------------------------------------------------------------------------------


def listed_results(answer: str) -> tuple[str, ...]:
    """The results that a reply states, in order: numbers without thousands separators, and words."""
    text = read_answer(answer, is_rest=True).text.lower()
    whole = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    return tuple(found for found in re.findall(r"[a-z]+|[0-9]+", whole) if found != "and")


# -- all of them, on exported rows ---------------------------------------------------------------------------


def is_right(row: Mapping[str, object], answer: str) -> bool:
    """The verdict on an answer to a row of `export`: `benchmark`, `gold`, and csqa's `choices`.

    Raises: ValueError if no function here grades the benchmark.
    """
    gold = row["gold"]
    match row["benchmark"]:
        case "csqa":
            choices = row["choices"]
            return isinstance(choices, Mapping) and last_letter(answer, choices) == str(gold)
        case "scan":
            actions = scan_actions(answer)
            return actions is not None and actions == scan_actions(str(gold))
        case "musique" if isinstance(gold, list):
            if row.get("answerable") is False:
                return abstains(answer)
            return bool(read_answer(answer).text.strip()) and span_scores(answer, gold)[0] == 1.0
        case "words":
            return last_number(answer) == str(gold)
        case "everyday":
            return listed_results(answer) == listed_results(str(gold))
    raise ValueError(f"no text grader for {row['benchmark']!r}")


def standalone_source() -> str:
    """This module and those that it imports, as the text of one file that needs only the standard library."""
    here = Path(__file__)
    sources = [
        here.with_name(f"{name}.py").read_text(encoding="utf-8")
        for name in ("json_answer", "reading", here.stem)
    ]
    own_imports = r"(?m)^from (?:__future__|r2_serve\.[\w.]+) import .*\n"
    return "from __future__ import annotations\n\n" + "\n".join(
        re.sub(own_imports, "", source) for source in sources
    )
