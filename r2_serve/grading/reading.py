"""Reads the answer out of a reply. This step is the same for every grader; a benchmark's own rules follow it.

A reply is opened from the outside in, layer by layer, until no layer is left: reasoning and answer tags,
marks of the end of the text, JSON with an answer field, boxes, "the answer is", fences, quotes, bold, LaTeX
text, bullets. A layer that is cut off, such as an open reasoning tag or half a JSON value, holds no answer.

Only the standard library and `json_answer` are imported, because `lab.evaluation.export` copies these files
for other evaluation tools.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from r2_serve.grading.json_answer import KEY, from_json

MAX_LAYERS = 40
"""Wrappers that are opened; real replies have three or four."""
MAX_RUN = 40
"""A longer run of one mark, as in a reply that repeats itself, is shortened: it takes long to read."""
MAX_CHARS = 1_000_000
"""A longer reply holds no answer."""


class Reading(NamedTuple):
    """The answer of a reply."""

    text: str
    """The answer without its wrappers; the whole reply if nothing marks one; empty if none was found."""
    is_stated: bool
    """Whether a tag, a JSON field, a box or a phrase such as "the answer is" marks the answer."""


def read_answer(reply: str, *, is_rest: bool = False) -> Reading:
    """The answer that `reply` gives. `is_rest`: all lines after "Answer:" belong to it, not the first line
    alone."""
    if len(reply) > MAX_CHARS:
        return Reading("", is_stated=False)
    text, is_stated, is_formula = reply, False, False
    for _ in range(MAX_LAYERS):
        text = without_reasoning(re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]{3,}", "  ", clean(text))))
        inner = _marked(text)
        if inner is None:
            peeled = _peeled(text, is_formula=is_formula)
            is_formula = is_formula or text.strip()[:1] in ("$", "\\")
            inner = _after_lead(text, is_rest=is_rest) if peeled == text else None
            if inner is None and peeled == text:
                break
            is_stated = is_stated or inner is not None
            text = peeled if inner is None else inner
        else:
            is_formula = is_formula or boxed(text) == inner
            text, is_stated = inner, True
    return Reading(text, is_stated)


def _marked(text: str) -> str | None:
    """The content of an answer tag, of a JSON field or of a box; of a tag inside a field, the field's."""
    tag = _ANSWER_TAG.search(text)
    key = KEY.search(text) if tag is not None else None
    is_inside = (
        key is not None and tag is not None and key.start() < tag.start() < tag.end() <= text.rfind("}")
    )
    for open_layer in (from_json, _tagged) if is_inside else (_tagged, from_json):
        found = open_layer(text)
        if found is not None:
            return found
    return boxed(text) if (final := _final_formula(text)) is None else final


def read_envelope(reply: str) -> str:
    """The reply without reasoning, answer tags, JSON and marks of its end. The rest stays as it was."""
    text = without_reasoning(reply.replace("\r\n", "\n").removeprefix("\ufeff"))
    for _ in range(MAX_LAYERS):
        inner = _tagged(text)
        fence = _FENCE.match(text.strip())
        if inner is None and KEY.match(text.strip(), fence.end() if fence else 0):
            inner = from_json(text, is_latex=False)
        if inner is None:
            break
        text = without_reasoning(inner)
    return text


# -- characters ----------------------------------------------------------------------------------------------

_CHARACTERS: dict[int, str | None] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **{ord(space): " " for space in "\u3000\u00a0\u2007\u2009\u202f"},
    **{ord(end): "\n" for end in "\u2028\u2029\u0085"},
    **{ord(minus): "-" for minus in "\u2212\ufe63\u2010\u2011"},
    **{ord(stop): ". " for stop in "\u3002\uff61"},
    **{ord(wide): plain for wide, plain in zip("\u3010\u3011\u3014\u3015\u3001", "[](),", strict=True)},
    **dict.fromkeys(
        map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e")
    ),
}
"""Full-width characters, blanks, line ends, minus signs and Chinese marks in ASCII; invisible characters
go."""


_RUN = re.compile(r"((?:[^\w\s]|_){1,2}?)\1{40,}")


def clean(text: str) -> str:
    """`text` with ASCII in place of full-width characters, one minus sign, plain spaces and line ends."""
    text = text.encode(errors="replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    text = _RUN.sub(lambda run: run[0][: MAX_RUN * len(run[1])], text)
    if text.isascii():
        return text
    text = re.sub("[\U0001d400-\U0001d7ff]+", lambda styled: unicodedata.normalize("NFKC", styled[0]), text)
    return re.sub(r"(?<![\w)\]}$])\s?[\u2013\u2014](?=\d)", "-", text.translate(_CHARACTERS))


# -- what a chat template or a reasoning model puts around an answer -----------------------------------------

_REASONING = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis|rationale|seed:think|cot"
    r"|explanation)"
)
_OPEN = (
    rf"(?:<{_REASONING}\b[^<>]*>|\[think\]|\u25c1think\u25b7|<\|begin_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>)"
)
_CLOSE = rf"(?:</{_REASONING}>|\[/think\]|\u25c1/think\u25b7|<\|end_of_thought\|>)"
_BLOCK = re.compile(rf"(?is){_OPEN}(?:(?!{_OPEN}).)*?(?:{_CLOSE}|<\|end\|>)")
_CLOSES, _OPENS = re.compile(f"(?i){_CLOSE}"), re.compile(f"(?i){_OPEN}")
_START = re.compile(
    r"(?i)\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>\s*assistant\b|<\|start\|>assistant"
    r"|<\|channel\|>final<\|message\|>|<\|start_header_id\|>assistant<\|end_header_id\|>|<\|?assistant\|?>)"
)
_CHANNEL = re.compile(r"<\|start\|>assistant|<\|channel\|>final<\|message\|>")
_CLOSERS = re.compile(
    r"(?:\s|\\n?|</\w+>|`{3}|~{3}|[\"'`}\]*_$.\u201c\u201d\u2019\u00bb\u300d]|\[/\w+\]|<\|end_of_\w+\|>)*"
)
"""The ends of wrappers around a mark, which then ends the text inside them."""
_END = re.compile(
    r"(?i)<\|(?!begin_of|end_of_(?:thought|solution|answer|box))[^<>|\n]{1,40}\|>|</s>|<eos>|<eot>|<end_of_turn>"
    r"|<end_of_utterance>|\[/?(?:eos|inst)\]|\[end of text\]"
)
_TAG = r"(?:final[_ -]?answer|answer|ans|final|solution|result|output|response)"
_ANSWER_TAG = re.compile(
    rf"(?is)<({_TAG})\b[^<>]*>((?:(?!<\1\b).)*?)(?:</\1\s*>|\Z)"
    r"|\[(answer)\](.*?)\[/answer\]|<\|begin_of_(solution|answer|box)\|>(.*?)<\|end_of_\5\|>"
)


def without_reasoning(text: str) -> str:
    """What follows the reasoning, up to the first mark of the end of the text: after it another turn begins.

    Nothing is left of reasoning that does not end, unless an answer tag stands in it.
    """
    for _ in range(MAX_LAYERS):
        shorter = _BLOCK.sub("", text)
        if shorter == text:
            break
        text = shorter
    closes = list(_CLOSES.finditer(text))
    text = text[closes[-1].end() :] if closes else text
    opening = _OPENS.search(text)
    if opening is not None and _ANSWER_TAG.search(text, opening.end()) is None:
        text = text[: opening.start()]
    text = _CHANNEL.sub("", text)
    while (start := _START.match(text)) is not None:
        text = text[start.end() :]
    kept, *turns = _END.split(text)
    for turn in turns:
        if not _CLOSERS.fullmatch(turn):
            break
        kept += turn
    return kept


def _tagged(text: str) -> str | None:
    """The content of the last answer tag, after that of the tags that "and", "or" or a comma joins to it."""
    spans = []
    for match in _ANSWER_TAG.finditer(text):
        content = next(part for part in match.groups()[1::2] if part is not None)
        spans.append((match.start(), match.end(), content))
    return _joined(text, spans)


# -- boxes and statements ------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_JOINT = re.compile(r"(?i)\b(?:and|or)\b|[,;&/]")
_STEP = re.compile(
    r"(?i)\b(?:so|thus|hence|therefore|then|gives?|giving|no|not|wait|actually|but|final|answer|check|which"
    r"|means|because)\b|\\(?:implies|Rightarrow|to|rightarrow|iff)\b|[.!?:]\s|\n\s*\n"
)
"""Words between two answers of which the second replaces the first."""

_SECOND_ANSWER = re.compile(
    r"(?i)[\s$)]*(?:\\text\s*\{\s*)?,?\s*\bor\b\s*\}?\s*(?:maybe |perhaps |possibly |else )?"
    r"(\$?\(?(?:-?[0-9]|\\[a-z]|[A-Z]\b)[^\n]*)"
)
"""A second answer that "or" joins to the last box."""


def boxed(text: str) -> str | None:
    """Content of the last box, after those that "and", "or" or a comma joins to it; "" if it is cut off."""
    starts = {match.end() - 1: match.start() for match in _BOX.finditer(text)}
    if not starts:
        return None
    spans: list[tuple[int, int, str]] = []
    opened: list[int] = []
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened and (opening := opened.pop()) in starts:
            while spans and spans[-1][0] > starts[opening]:
                spans.pop()
            spans.append((starts[opening], brace.end(), text[opening + 1 : brace.start()]))
    is_cut = max(starts) > (spans[-1][1] if spans else -1)
    found = "" if is_cut else _joined(text, spans)
    second = None if is_cut else _SECOND_ANSWER.match(text, spans[-1][1])
    return f"{found} or {second[1]}" if second else found


def closing(text: str, opening: int, pair: str = "{}") -> int:
    """Index of the bracket that closes the one at `opening`, or -1. An escaped brace is none."""
    depth = 0
    for bracket in re.compile(rf"(?<!\\)[{re.escape(pair)}]").finditer(text, opening):
        depth += 1 if bracket[0] == pair[0] else -1
        if depth == 0:
            return bracket.start()
    return -1


def _joined(text: str, spans: list[tuple[int, int, str]]) -> str | None:
    """The last of several marked answers, after those that the text between joins to it."""
    if not spans:
        return None
    contents = [spans[-1][2].strip()]
    for earlier, later in zip(spans[-2::-1], spans[:0:-1], strict=True):
        between = text[earlier[1] : later[0]]
        is_joined = (len(between) < 70 and _JOINT.search(between)) or len(between.strip()) < 10
        if not is_joined or _STEP.search(between):
            break
        if earlier[2].strip() not in contents:
            contents.insert(0, earlier[2].strip())
    return ", ".join(contents)


_NOUN = (
    r"(?<![\w-])(?:answers?|ans|(?:correct|right|best) (?:option|choice|letter|one))(?![\w-])|\u7b54\u6848"
)
_VERB = (
    r"(?:is|are|was|(?:must|should|would|will|has to|have to|can only)(?:[ \t]+\w+ly)?[ \t]+be"
    r"|equals?)(?![\w'])"
    r"|\u662f|\u4e3a"
)
_CLOSING = r"(?:[*_]+(?=\s|$))?"
_FORMULA_NEXT = r"(?=\$\$|\\\[|\$[^$\n]+\$|\\\([^\n]+?\\\))"
_LEAD = re.compile(
    rf"(?i)(?:{_NOUN})(?:[ \t]+(?:to|of|for)[ \t][^\n.:=]{{1,80}}?)?[*_\"'`)\]]*\s*"
    rf"(?:(?:{_VERB})(?:[ \t]*[:=]+{_CLOSING})?|[:=]{_CLOSING}|->|\u2192|{_FORMULA_NEXT})"
    r"|^[ \t*_]*(?:final[ \t]+)?answer[*_]*[ \t]+[-\u2013\u2014](?=[ \t])"
    r"|^[ \t]*\#{4}[ \t](?!.*(?:answer|step))|^[ \t*_\#]*(?:the[ \t]+)?final[ \t]+answer[ \t*_:]*$",
    re.MULTILINE,
)
"""What stands before a stated answer: "the answer to it is", "Answer:", "####", a heading "Final Answer"."""
_NO_ANSWER = re.compile(r"(?i)(?:correct|right|wrong|incorrect|as follows)\b")
_FILLER = re.compile(
    r"(?i)^(?:[:=]|(?:therefore|thus|then|simply|just|clearly|indeed|definitely|of course|option"
    r"|choice)\b[,:]?)\s*"
)
_REASON = re.compile(
    r"(?i)[,;]?\s+(?:because|since|as (?:the|it|we|a|an)|so that|due to|which|I hope|given that)\b"
)
_SENTENCE = re.compile(r"(?:(?<=[\w)\]}$%\"'*!\u201d\u00b0])|(?<=\\\)))[.!](?=\s|$)")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|St|Mr|Mrs|Ms|Dr|Jr|Sr|No|Mt|Ft|vs|Prof|Gen|Inc|Co|[A-Za-z](?:\.[A-Za-z])+)$"
)


def _after_lead(text: str, *, is_rest: bool) -> str | None:
    """What follows the last "answer is", "Answer:" or "####"; None if there is no such phrase or nothing
    follows."""
    for lead in reversed(list(_LEAD.finditer(text))):
        rest = text[lead.end() :].strip()
        if not rest or _NO_ANSWER.match(rest):
            continue
        if rest.endswith(("```", "~~~")) and rest.count(rest[-3:]) % 2:
            rest = rest[:-3].rstrip()
        if is_rest or rest.startswith(("```", "~~~", "{", "[")):
            return rest
        line, _, below = rest.partition("\n")
        if line.count("$$") == 1 or ("\\[" in line and "\\]" not in line):
            line = f"{line}\n{below}".partition("\n\n")[0]
        while (plain := _FILLER.sub("", line)) != line:
            line = plain
        return _first_sentence(line.replace("**", "") if line.count("**") % 2 else line)
    return None


def _first_sentence(line: str) -> str:
    """`line` up to the end of its first sentence, without the reason that follows an answer."""
    line = _REASON.split(line, maxsplit=1)[0] if not line.startswith(("because", "since")) else line
    for stop in _SENTENCE.finditer(line):
        head = line[: stop.start()]
        if not _is_open(head) and not _ABBREVIATION.search(head):
            return head.strip()
    return line.strip()


def _is_open(head: str) -> bool:
    """Whether a quote, a formula, a brace or an HTML element that begins in `head` ends after it."""
    if len(re.findall(r"<[a-z]+>", head)) > head.count("</"):
        return True
    if head.count("{") > head.count("}") or (head.startswith("'") and head.count("'") == 1):
        return True
    return any(
        head.count(start) % 2 if start == end else head.count(start) > head.count(end)
        for start, end in _PAIRS
        if start not in ("'", "_", "*", "\u2019", "\u201d")
    )


_FINAL = re.compile(
    r"(?i)final answer(?: is)?[:*\s]*\s*((?:\$[^$\n]+\$|\\\(.+?\\\)|-?[0-9][0-9,./]*)[^\n.]{0,3}?)"
    r"(?=\.(?:\s|$)|\s*$|\n)"
)


def _final_formula(text: str) -> str | None:
    """The formula of a "final answer" that is stated after the last box."""
    last = max((match.start() for match in _BOX.finditer(text)), default=-1)
    stated = list(_FINAL.finditer(text, last)) if last >= 0 else []
    return stated[-1][1] if stated else None


# -- wrappers around the whole answer ------------------------------------------------------------------------

_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*\n")
_PAIRS = (
    *[(pair[0], pair[1]) for pair in (
        '""', "''", "``", "\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u201a\u2018",
        "\u00ab\u00bb", "\u00bb\u00ab",
        "\u2039\u203a", "\u300c\u300d", "\u300e\u300f", "\u300a\u300b", "\u3008\u3009", "\u201d\u201d",
        "\u2019\u2019",
    )],
    ("***", "***"), ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"),
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("``", "''"),
)  # fmt: skip
"""Quotes of English, German, French, Chinese and Japanese, bold and italics, and LaTeX's marks of a
formula."""
_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|operatorname|mbox|emph|underline|bm"
    r"|boldsymbol)\s*\{"
)
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|large|Large|huge|bf|rm|it|quad|qquad|[,;:! ])(?![a-zA-Z])\s*"
)
_HTML = re.compile(r"(?is)\s*<(\w+)(?:\s[^<>]*)?>((?:(?!<\1\b).)*)</\1\s*>\s*")
_BULLET = re.compile(
    r"(?m)^\s*(?:[-*+\u2022\u2023\u25aa\u25e6\u00b7\u25cf\u2013\u2014]\s+|>\s+|\#{1,6}\s+|1[.)]\s+)(?=\S)"
)


def _peeled(text: str, *, is_formula: bool = False) -> str:
    """`text` without its outermost wrapper, if one stands around all of it. In a formula "- 7" is no
    bullet."""
    text = text.strip()
    fence = _FENCE.match(text)
    if fence and text.endswith(fence[1]) and text.count(fence[1]) == 2:
        return text[fence.end() : -len(fence[1])]
    if html := _HTML.fullmatch(text):
        return html[2]
    is_list = len(_BULLET.findall(text)) > 1
    bullet = _BULLET.match(text) if not is_formula and not is_list else None
    if start := bullet or _STYLE.match(text):
        return text[start.end() :]
    for opening, end in _PAIRS:
        inner = text[len(opening) : -len(end)]
        if inner and text.startswith(opening) and text.endswith(end) and _stands_around(inner, opening, end):
            return inner
    command = _COMMAND.match(text)
    brace = command.end() - 1 if command else 0
    if text[brace : brace + 1] == "{" and closing(text, brace) == len(text) - 1:
        return text[brace + 1 : -1]
    is_stop = (
        text.endswith(".") and not text.endswith("..") and not re.search(r"\b[A-Za-z]\.[A-Za-z]\.$", text)
    )
    return text[:-1] if is_stop else text


def _stands_around(inner: str, start: str, end: str) -> bool:
    """Whether the pair was one wrapper, and not the first and the last of several: `"a" or "b"`."""
    rest = re.sub(r"(?<=\w)['\u2019](?=\w)", "", inner) if start in ("'", "\u2018") else inner
    rest = rest.replace("\\$", "") if start == "$" else rest
    if start not in rest and end not in rest:
        return bool(inner.strip())
    if start in ("*", "_", "**", "__") or (start == end and rest.count(end) % 2):
        return False
    is_nested = any(inner.startswith(opening) and inner.endswith(close) for opening, close in _PAIRS)
    return is_nested if start == end else is_nested or rest.count(start) == rest.count(end)
