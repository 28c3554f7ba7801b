"""The compact dialect with plans in chains: references that a tiny decomposer need not count out.

    ann n1 * n2 ; ^ - n3 ; bob max l1 ; reverse w1 ; bob - ann | *
    ->  3 * 24 ; #1 - 12 ; max 34 , 71 , 18 ; reverse "garden" ; #3 - #2 | #4, #5

`^` is the answer of the step before. A step without it begins a chain. A chain can begin with a name of the
query: later steps use its last answer by that name, which a model copies from the question. `^2` is the last
answer of the second chain, for chains without a name. `| *` makes the answer of all results that no step
uses, in order. Other references stay `#k`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from r2_serve.errors import CodecError
from r2_serve.prompts.compact import CompactCodec, query_tokens
from r2_serve.types import Plan, references

_ALL = "*"
_CAPITALISED = re.compile(r"[A-Z][a-z]+")
_SENTENCE_ENDS = frozenset(".?!")
_REFERENCE = re.compile(r"#([0-9]+)")
_WRITTEN_REFERENCE = re.compile(r'(?<!\S)("?)(\^[0-9]{0,2}|[a-z]+)("?)(?!\S)')


class ChainsCodec(CompactCodec):
    """The `compact-chains` dialect; the module's docstring describes it. Only plans differ from `compact`."""

    name = "compact-chains"
    version = 2

    def format_plan(self, plan: Plan, query: str) -> str:
        body, bar, _ = super().format_plan(plan, query).partition(" | ")
        names, chains = _Names.of(query), _Chains()
        written = []
        for place, step in enumerate(body.split(" ; "), 1):
            text = chains.written(step, place)
            if is_going_on := "^" in text.replace('"', " ").split():
                label = ""
            else:
                label = names.label(step, taken=chains.labels)
            chains.add(place, label, is_going_on=is_going_on)
            written.append(f"{label} {text}".strip())
        answer = f" | {plan.answer}".replace(", ", " , ") if bar else ""
        return " ; ".join(written) + (f" | {_ALL}" if bar and plan.answer == unused(plan) else answer)

    def parse_plan(self, text: str, query: str) -> Plan:
        body, bar, answer = text.strip().partition("|")
        names, chains = _Names.of(query), _Chains()
        steps = []
        for place, step in enumerate(body.split(";"), 1):
            first, _, rest = step.strip().partition(" ")
            label = first if first in names.all and rest[:2] not in {"+ ", "- ", "* ", "/ "} else ""
            step = rest if label else step.strip()
            is_going_on = "^" in step.replace('"', " ").split()
            steps.append(chains.read(step, place))
            chains.add(place, label, is_going_on=is_going_on)
        takes_all = bool(bar) and answer.strip() == _ALL
        plan = super().parse_plan(" ; ".join(steps) + (f"|{answer}" if bar and not takes_all else ""), query)
        return Plan(subtasks=plan.subtasks, answer=unused(plan)) if takes_all else plan


def unused(plan: Plan) -> str:
    """The template of all results that no step uses."""
    used = {d for subtask in plan.subtasks for d in subtask.depends_on}
    return ", ".join(f"#{subtask.id}" for subtask in plan.subtasks if subtask.id not in used)


@dataclass
class _Chains:
    """The chains of the steps so far."""

    ends: list[int] = field(default_factory=list)
    """The last step of each chain."""
    labels: list[str] = field(default_factory=list)
    """The name of each chain, or an empty text."""

    def add(self, place: int, label: str, *, is_going_on: bool) -> None:
        if is_going_on and self.ends:
            self.ends[-1] = place
        else:
            self.ends.append(place)
            self.labels.append(label)

    def written(self, step: str, place: int) -> str:
        """The step of a plan, with its references as the dialect writes them."""
        is_alone = references(step) == {place - 1}

        def reference(match: re.Match[str]) -> str:
            at = int(match[1])
            chain = self.ends.index(at) if at in self.ends else None
            if chain is not None and self.labels[chain] and not is_alone:
                return self.labels[chain]
            if at == place - 1:
                return "^"
            return match.group() if chain is None else f"^{chain + 1}"

        return _REFERENCE.sub(reference, step)

    def read(self, step: str, place: int) -> str:
        """The step with `#k` for every reference. Raises: CodecError for a chain that there is not."""

        def reference(match: re.Match[str]) -> str:
            word = match[2]
            if word.startswith("^"):
                return f"{match[1]}#{self._end(word, place)}{match[3]}"
            if word in self.labels:
                return f"{match[1]}#{self.ends[self.labels.index(word)]}{match[3]}"
            return match.group()

        return _WRITTEN_REFERENCE.sub(reference, step)

    def _end(self, word: str, place: int) -> int:
        if word == "^" and place > 1:
            return place - 1
        if not word[1:] or not 1 <= int(word[1:]) <= len(self.ends):
            raise CodecError(f"{word!r} is no chain: there are {len(self.ends)}", "invalid_plan")
        return self.ends[int(word[1:]) - 1]


@dataclass(frozen=True)
class _Names:
    """The names of a query: words that it writes with a capital twice, at least once inside a sentence."""

    all: frozenset[str]
    by_sentence: dict[int, list[str]]
    sentence_of: dict[str, int]
    """The sentence of each placeholder (`n1`)."""

    @classmethod
    def of(cls, query: str) -> _Names:
        sentence, is_first = 0, True
        found: list[tuple[str, int]] = []
        inside: set[str] = set()
        sentence_of: dict[str, int] = {}
        for token, placeholder in query_tokens(query):
            if token in _SENTENCE_ENDS:
                sentence, is_first = sentence + 1, True
                continue
            if placeholder:
                sentence_of[placeholder] = sentence
            elif _CAPITALISED.fullmatch(token):
                found.append((token.lower(), sentence))
                inside |= set() if is_first else {token.lower()}
            is_first = False
        words = [word for word, _ in found]
        names = frozenset(word for word in inside if words.count(word) > 1)
        by_sentence: dict[int, list[str]] = {}
        for word, at in found:
            if word in names:
                by_sentence.setdefault(at, []).append(word)
        return cls(names, by_sentence, sentence_of)

    def label(self, step: str, *, taken: list[str]) -> str:
        """The first free name in the sentence of the step's first placeholder; empty if there is none."""
        words = step.split()
        at = next((self.sentence_of[word] for word in words if word in self.sentence_of), -1)
        free = (n for n in self.by_sentence.get(at, ()) if n not in taken and n not in words)
        return next(free, "")
