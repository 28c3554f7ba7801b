"""The dialect of the embedded tiny models: one short line in, one short line out.

    decompose   ann has n1 bags of n2 coins bob has n3 coins and loses n4 how many coins in all
                -> n1 * n2 ; n3 - n4 ; #1 + #2
                turn around right twice after run  ->  run ; turn around right | #1 #2 #2
    allocate    d1 * d1 ; d3 - d2 ; #1 + #2        ->  @1 @3 @2         (@k: k-th model of the pool)
    both        the same prompt as to decompose  ->  n1 * n2 @1 ; n3 - n4 @3 ; #1 + #2 @2
    subtask     5 4 6 - 2 1                        ->  3 3 6            (least significant digit first)

The decomposer sees the query's numbers as `n1 n2 ...`, by position, and writes these names; the codec fills
the numbers back in. So no number is copied digit by digit, and a plan is short. Source: number mapping of
Wang, Liu and Shi, "Deep Neural Solver for Math Word Problems" (EMNLP 2017). Punctuation is left out. A number
that the query does not hold stands in a plan as digits. The allocator sees how many digits a number has
(`d3`), which makes a step hard or easy. Workers see digits as separate tokens, least significant first, the
order in which carries are computed. `|` opens the answer template. The chat template of each shipped model
appends the arrow that asks for the reply.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from r2_serve.errors import CodecError, counted
from r2_serve.prompts.candidates import are_described, candidates, described, place_of
from r2_serve.prompts.conversation import conversation_text
from r2_serve.types import Allocation, Message, ModelCard, Plan, Subtask, references, substitute

_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
"""A number of a text: 645, 1,000 or 3.5."""
_LISTED = rf"{_NUMERAL}(?:, {_NUMERAL})+,? and {_NUMERAL}"
_QUOTED = r'"[A-Za-z]+"'
_QUERY_TOKEN = re.compile(rf"{_LISTED}|{_NUMERAL}|{_QUOTED}|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_STEP_TOKEN = re.compile(
    rf'"#[0-9]+"|#[0-9]+|{_NUMERAL}(?: , {_NUMERAL})+|{_NUMERAL}|{_QUOTED}|[A-Za-z_]+|[^\sA-Za-z0-9_]'
)
_WORKER_TOKEN = re.compile(r"#[0-9]+|[0-9]|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_SPELLED = re.compile(r'"([a-z]+)"')
_LETTER_GAP = re.compile(r"(?<!\S)[a-z](?: [a-z])+(?!\S)")
_DIGIT_GAP = re.compile(r"(?<!\S)[0-9](?: [0-9])+(?!\S)")
_DIGITS = re.compile(r"(?<!#)\b[0-9]+\b")
_PLACEHOLDER = re.compile(r"(?<!\S)([nlw])([0-9]+)(?!\S)")
_SIDE_BY_SIDE = re.compile(r"(?<!\S)n?[0-9]+ n?[0-9]+(?!\S)")
_SILENT = frozenset(".,?!")
MAX_REPLY_CHARS = 20_000


class CompactCodec:
    """The `compact` dialect; the module's docstring describes it."""

    name = "compact"
    version = 2
    is_streamable = False
    takes_conversations = False

    def with_prompts(self, prompts: object) -> CompactCodec:
        """The same: this dialect has no texts."""
        return self

    def render_decompose(
        self, messages: Sequence[Message], max_subtasks: int, pool: Sequence[ModelCard] = ()
    ) -> list[Message]:
        tokens = query_tokens(conversation_text(messages).lower())
        words = [placeholder or token for token, placeholder in tokens if token not in _SILENT]
        return [Message(role="user", content=" ".join(words))]

    def plan_schema(self, max_subtasks: int, pool: Sequence[ModelCard] = ()) -> dict[str, object] | None:
        return None

    def format_plan(self, plan: Plan, query: str) -> str:
        """The plan as text. The n-th use of a literal that the query repeats means its n-th occurrence."""
        places: dict[str, list[str]] = defaultdict(list)
        for name, literal in _literals(query).items():
            places[literal].append(name)

        def placeholder(literal: str) -> str:
            found = places.get(literal)
            if found:
                return found.pop(0) if len(found) > 1 else found[0]
            if " , " in literal:
                return " , ".join(map(placeholder, literal.split(" , ")))
            return literal if literal.startswith('"') else " ".join(literal)

        steps = " ; ".join(_rewritten(subtask.text, placeholder) for subtask in plan.subtasks)
        return steps if plan.answer is None else f"{steps} | {plan.answer.replace(', ', ' , ')}"

    def parse_plan(self, text: str, query: str) -> Plan:
        if len(text) > MAX_REPLY_CHARS:
            raise CodecError(f"a plan of {len(text)} characters (limit {MAX_REPLY_CHARS})", "too_long")
        body, bar, answer = text.strip().partition("|")
        literals = _literals(query)
        steps = [_filled(step, literals) for step in body.split(";")]
        if not all(steps):
            raise CodecError("the plan has an empty step", "empty_step")
        try:
            subtasks = tuple(
                Subtask(id=i, text=step, depends_on=tuple(sorted(references(step))))
                for i, step in enumerate(steps, 1)
            )
            return Plan(subtasks=subtasks, answer=answer.strip().replace(" , ", ", ") if bar else None)
        except ValueError as e:
            raise CodecError(f"not a plan: {_first_line(e)}", "invalid_plan") from e

    def format_allocated(
        self, plan: Plan, allocation: Allocation, query: str, pool: Sequence[ModelCard]
    ) -> str:
        steps, bar, answer = self.format_plan(plan, query).partition(" | ")
        places = {card.name: place for place, card in enumerate(pool, 1)}
        pairs = zip(steps.split(" ; "), allocation.models, strict=True)
        marked = " ; ".join(f"{step} @{places[model]}" for step, model in pairs)
        return f"{marked}{bar}{answer}"

    def parse_allocated(self, text: str, query: str, pool: Sequence[ModelCard]) -> tuple[Plan, Allocation]:
        """The model of a step is named by its place in the pool, since the prompt does not show the pool."""
        body, bar, answer = text[: MAX_REPLY_CHARS + 1].partition("|")
        steps, _, marks = zip(*(step.strip().rpartition(" ") for step in body.split(";")), strict=True)
        plan = self.parse_plan(f"{' ; '.join(steps)} {bar} {answer}", query)
        names = _places(pool)
        if unknown := [mark for mark in marks if mark not in names]:
            raise CodecError(f"unknown model {unknown[0][:40]!r}; the choices are {names}", "unknown_model")
        return plan, Allocation(models=tuple(names[mark] for mark in marks))

    def render_allocate(
        self, messages: Sequence[Message], plan: Plan, pool: Sequence[ModelCard]
    ) -> list[Message]:
        if are_described(pool):
            steps = [described(step_kind(subtask), pool) for subtask in plan.subtasks]
        else:
            steps = [_rewritten(subtask.text, _lengths) for subtask in plan.subtasks]
        return [Message(role="user", content=" ; ".join(steps))]

    def allocation_schema(self, plan: Plan, pool: Sequence[ModelCard]) -> dict[str, object] | None:
        return None

    def allocation_words(self, plan: Plan, pool: Sequence[ModelCard]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(_places(cards)) for cards in _options(plan, pool))

    def format_allocation(self, allocation: Allocation, plan: Plan, pool: Sequence[ModelCard]) -> str:
        """A model that is no candidate of its step is written as the candidate that is better and cheaper."""
        options = _options(plan, pool)
        return " ".join(
            f"@{place_of(model, names, pool)}"
            for model, names in zip(allocation.models, options, strict=True)
        )

    def parse_allocation(self, text: str, plan: Plan, pool: Sequence[ModelCard]) -> Allocation:
        words = text[:MAX_REPLY_CHARS].split()
        if len(words) != len(plan.subtasks):
            raise CodecError(
                f"{counted(len(words), 'choice')} for {counted(len(plan.subtasks), 'subtask')}", "wrong_count"
            )
        models = []
        for word, cards in zip(words, _options(plan, pool), strict=True):
            names = _places(cards)
            if word not in names:
                raise CodecError(f"unknown model {word[:40]!r}; the choices are {names}", "unknown_model")
            models.append(names[word])
        return Allocation(models=tuple(models))

    def render_subtask(
        self, messages: Sequence[Message], plan: Plan, subtask: Subtask, answers: Mapping[int, str]
    ) -> list[Message]:
        return [Message(role="user", content=_worker_text(substitute(subtask.text, dict(answers))))]

    def render_query(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role="user", content=_worker_text(messages[-1].text))]

    def parse_answer(self, text: str) -> str:
        joined = _LETTER_GAP.sub(lambda match: match.group().replace(" ", ""), _joined(text))
        return _DIGITS.sub(lambda match: match.group()[::-1].lstrip("0") or "0", joined).replace(" , ", ", ")


def query_tokens(query: str) -> Iterator[tuple[str, str]]:
    """The tokens of a query in order, each with its placeholder (`n1`, `l1`, `w1`), or with an empty text."""
    counts = Counter[str]()
    for token in _QUERY_TOKEN.findall(query):
        letter = _letter(token)
        counts[letter] += 1
        yield token, f"{letter}{counts[letter]}" if letter else ""


def _letter(token: str) -> str:
    """What a token of a query or step is: a number, a list of numbers, a quoted word; empty for others."""
    if token.startswith('"'):
        return "w" if len(token) > 1 else ""
    if not "0" <= token[0] <= "9":
        return ""
    return "l" if " " in token else "n"


def _literals(query: str) -> dict[str, str]:
    """Each placeholder of the query with what it stands for. Thousands separators are dropped."""
    return {placeholder: _plain(token) for token, placeholder in query_tokens(query) if placeholder}


def _plain(token: str) -> str:
    """A literal as steps write it: `1000`, `34 , 12 , 78`, `"garden"`."""
    if token.startswith('"'):
        return token.lower()
    return " , ".join(number.replace(",", "") for number in re.findall(_NUMERAL, token))


def _rewritten(step: str, rewrite: Callable[[str], str]) -> str:
    """The step's tokens separated by single spaces, each literal replaced."""
    tokens = _STEP_TOKEN.findall(step)
    return " ".join(rewrite(_plain(token)) if _is_literal(token) else token for token in tokens)


def _is_literal(token: str) -> bool:
    return bool(_letter(token)) and "#" not in token


def _lengths(literal: str) -> str:
    """Numbers of digits in place of numbers; a quoted word as it is."""
    return (
        literal if literal.startswith('"') else _DIGITS.sub(lambda match: f"d{len(match.group())}", literal)
    )


def step_kind(subtask: Subtask) -> str:
    """The first word or sign of a step that is no operand: `max`, `+`. It names what skill the step needs."""
    tokens = _STEP_TOKEN.findall(subtask.text)
    return next((token for token in tokens if not _letter(token) and "#" not in token), "")


def _options(plan: Plan, pool: Sequence[ModelCard]) -> list[list[ModelCard]]:
    """The models that each step chooses from, in the order of `@1 @2 ...`."""
    if not are_described(pool):
        return [list(pool)] * len(plan.subtasks)
    return [candidates(step_kind(subtask), pool) for subtask in plan.subtasks]


def _places(cards: Sequence[ModelCard]) -> dict[str, str]:
    """The name of each model by the word that chooses it: `@1`, `@2`, ..."""
    return {f"@{place}": card.name for place, card in enumerate(cards, 1)}


def _filled(step: str, literals: Mapping[str, str]) -> str:
    """The reverse of `_rewritten`. Raises: CodecError for a name that stands for no literal."""
    joined = _joined(step)
    if match := _SIDE_BY_SIDE.search(joined):
        raise CodecError(f"two numbers side by side in a step: {match.group()[:40]!r}", "adjacent_numbers")

    def literal(match: re.Match[str]) -> str:
        if match.group() not in literals:
            raise CodecError(
                f"{match.group()[:40]!r} stands for nothing: the query has {list(literals)}", "unknown_number"
            )
        return literals[match.group()]

    return _PLACEHOLDER.sub(literal, joined)


def _joined(text: str) -> str:
    """The text with single spaces and its digits joined to numbers: `6 4 5` is 645."""
    return _DIGIT_GAP.sub(lambda match: match.group().replace(" ", ""), " ".join(text.split()))


def _worker_text(text: str) -> str:
    """Digits apart, the least significant first, and the letters of quoted words apart."""
    spelled = _SPELLED.sub(lambda match: " ".join(match[1]), text.lower())
    return " ".join(_WORKER_TOKEN.findall(_DIGITS.sub(lambda match: match.group()[::-1], spelled)))


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("Value error, ")]
    return (
        lines[0].removeprefix("Value error, ").partition(" [type=")[0]
        if lines
        else str(error).splitlines()[0]
    )
