"""Finds the answer field in JSON that a model wrote, which is often not quite JSON.

Only the standard library is imported, because `lab.evaluation.export` copies this file for other evaluation
tools.
"""

from __future__ import annotations

import json
import re

MAX_OPENINGS = 8
"""Braces before an answer field that are tried as the beginning of its object."""
_NAMES = r"final[_ -]?answer|answer|actions|choice|result|solution|output|prediction|response|program|code"
_INNER = ("letter", "label", "value", "text")
"""Fields of an answer that is itself an object."""
_KEYS = _NAMES.replace("[_ -]?", "_").split("|")
KEY = re.compile(rf"[{{,]\s*[\"'`\u201c]?({_NAMES})[\"'`\u201d]?\s*:\s*", re.IGNORECASE)
"""The name of an answer field, from the brace or comma before it to the beginning of its value."""
_LATEX_ESCAPE = re.compile(
    r"(?<!\\)((?:\\\\)*)\\(?=(?:b(?:ar|egin|eta|inom|f|ig\w*|oxed|mod|ot|oldsymbol|ullet)|f(?:rac|orall|box)"
    r"|n(?:eq?|u|abla|ot|otin|eg|mid)|r(?:ight\w*|ho|angle|floor|ceil|m|vert|brace)"
    r"|t(?:ext\w*|frac|imes|heta|anh?|au|o|riangle|hinspace|ilde)|u(?![0-9a-fA-F]{4})\w*)(?![a-z])"
    r"|[^\"\\/bfnrtu])"
)
"""A backslash that JSON would misread: of LaTeX that was not escaped, such as `\\frac`, or of no escape at
all."""
_DECODER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str)
"""Numbers stay as they are written: 0.10 is not 0.1 where answers are compared as text."""


def from_json(text: str, *, is_latex: bool = True) -> str | None:
    """The answer field of the last JSON object in `text`, or the items of a JSON list.

    `is_latex`: `\\frac` is LaTeX whose backslash was not doubled, and no form feed. Returns "" if the value
    is null or cut off, and None if there is no such field.
    """
    text = text.strip()
    keys = list(KEY.finditer(text))
    if not keys:
        return _only_value(text) if text[:1] in ("{", "[") else None
    key = keys[-1]
    openings = [brace.start() for brace in re.finditer(r"\{", text[: key.start() + 1])]
    for opening in reversed(openings[-MAX_OPENINGS:]):
        try:
            value, _ = _DECODER.raw_decode(_escaped(text[opening:]) if is_latex else text[opening:])
        except (ValueError, RecursionError):
            continue
        found = _field(value)
        if found is not None:
            return _as_text(found[0])
    return _loose_value(text[key.end() :])


def _escaped(text: str) -> str:
    return _LATEX_ESCAPE.sub(r"\1\\\\", text)


def _only_value(text: str) -> str | None:
    """A JSON list of texts, or the single field of an object; None if `text` is neither."""
    try:
        value, end = _DECODER.raw_decode(_escaped(text))
    except (ValueError, RecursionError):
        return None
    if end < len(_escaped(text)):
        return None
    if isinstance(value, dict):
        return _as_text(next(iter(value.values()))) if len(value) == 1 else None
    is_plain = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return _as_text(value) if is_plain and '"' in text else None


def _field(value: object) -> tuple[object] | None:
    """The value of an object's answer field, in a tuple because it may be null. Answers come before
    results."""
    if not isinstance(value, dict):
        return None
    names = {re.sub(r"[ -]", "_", str(name)).lower(): name for name in value}
    names = {name.replace("finalanswer", "final_answer"): original for name, original in names.items()}
    for key in _KEYS:
        if key in names:
            inner = value[names[key]]
            return _field(inner) or (inner,)
    return next((found for inner in value.values() if (found := _field(inner)) is not None), None)


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_as_text, value))
    if isinstance(value, dict):
        inner = next(
            (name for name in _INNER if name in value), next(iter(value), "") if len(value) == 1 else ""
        )
        return _as_text(value[inner]) if inner else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _loose_value(text: str) -> str:
    """A field's value that no JSON reader takes: single quotes, quotes inside quotes, no last brace. "" if
    cut off."""
    quote = {"\u201c": "\u201d"}.get(text[:1], text[:1])
    if quote not in ("'", '"', "`", "\u201d"):
        bare = re.match(
            r"(-?[0-9][0-9.,/]*?|[A-Z]|[^\n\"'{}\[\],]+|\[[^\[\]]*\])\s*(?:,\s*[\"'\w]|[}\n])", text
        )
        return bare[1] if bare else ""
    match = re.match(rf"(?s).((?:[^{quote}\\]|\\.)*){quote}\s*(?:[,}}\]]|```|$)", text)
    match = match or re.match(rf"(?s).(.*){quote}\s*}}", text)
    return re.sub(r'\\(["\'\\])', r"\1", match[1]).replace("\\n", "\n") if match else ""
