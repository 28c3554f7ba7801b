"""The dialect of the embedded tiny models: one short line in, one short line out.

    decompose   ann has n1 bags of n2 coins bob has n3 coins and loses n4 how many coins in all
                -> n1 * n2 ; n3 - n4 ; #1 + #2
                turn around right twice after run  ->  run ; turn around right | #1 #2 #2
    allocate    d1 * d1 ; d3 - d2 ; #1 + #2        ->  @1 @3 @2         (@k: k-th model of the pool)
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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from r2_serve.errors import CodecError
from r2_serve.prompts.conversation import conversation_text
from r2_serve.types import Allocation, Message, ModelCard, Plan, Subtask, references, substitute

_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
"""A number of a text: 645, 1,000 or 3.5."""
_QUERY_TOKEN = re.compile(rf"{_NUMERAL}|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_STEP_TOKEN = re.compile(rf"#[0-9]+|{_NUMERAL}|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_WORKER_TOKEN = re.compile(r"#[0-9]+|[0-9]|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_DIGIT_GAP = re.compile(r"(?<!\S)[0-9](?: [0-9])+(?!\S)")
_DIGITS = re.compile(r"(?<!#)\b[0-9]+\b")
_PLACEHOLDER = re.compile(r"(?<!\S)n([0-9]+)(?!\S)")
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

    def render_decompose(self, messages: Sequence[Message], max_subtasks: int) -> list[Message]:
        numbers, words = 0, []
        for token in _QUERY_TOKEN.findall(conversation_text(messages).lower()):
            if _is_number(token):
                numbers += 1
                words.append(f"n{numbers}")
            elif token not in _SILENT:
                words.append(token)
        return [Message(role="user", content=" ".join(words))]

    def plan_schema(self, max_subtasks: int) -> dict[str, object] | None:
        return None

    def format_plan(self, plan: Plan, query: str) -> str:
        """The plan as text. The n-th use of a number that the query repeats refers to its n-th occurrence."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, number in enumerate(_numbers(query), 1):
            places[number].append(place)

        def placeholder(number: str) -> str:
            found = places.get(number)
            if not found:
                return " ".join(number)
            return f"n{found.pop(0) if len(found) > 1 else found[0]}"

        steps = " ; ".join(_rewritten(subtask.text, placeholder) for subtask in plan.subtasks)
        return steps if plan.answer is None else f"{steps} | {plan.answer}"

    def parse_plan(self, text: str, query: str) -> Plan:
        if len(text) > MAX_REPLY_CHARS:
            raise CodecError(f"a plan of {len(text)} characters (limit {MAX_REPLY_CHARS})", "too_long")
        body, bar, answer = text.strip().partition("|")
        numbers = _numbers(query)
        steps = [_filled(step, numbers) for step in body.split(";")]
        if not all(steps):
            raise CodecError("the plan has an empty step", "empty_step")
        try:
            subtasks = tuple(
                Subtask(id=i, text=step, depends_on=tuple(sorted(references(step))))
                for i, step in enumerate(steps, 1)
            )
            return Plan(subtasks=subtasks, answer=answer.strip() if bar else None)
        except ValueError as e:
            raise CodecError(f"not a plan: {_first_line(e)}", "invalid_plan") from e

    def render_allocate(
        self, messages: Sequence[Message], plan: Plan, pool: Sequence[ModelCard]
    ) -> list[Message]:
        steps = (
            _rewritten(subtask.text, lambda number: f"d{sum(map(str.isdigit, number))}")
            for subtask in plan.subtasks
        )
        return [Message(role="user", content=" ; ".join(steps))]

    def allocation_schema(self, plan: Plan, pool: Sequence[ModelCard]) -> dict[str, object] | None:
        return None

    def format_allocation(self, allocation: Allocation, pool: Sequence[ModelCard]) -> str:
        position = {card.name: i for i, card in enumerate(pool, 1)}
        return " ".join(f"@{position[model]}" for model in allocation.models)

    def parse_allocation(self, text: str, plan: Plan, pool: Sequence[ModelCard]) -> Allocation:
        words = text[:MAX_REPLY_CHARS].split()
        names = {f"@{i}": card.name for i, card in enumerate(pool, 1)}
        if len(words) != len(plan.subtasks):
            raise CodecError(f"{len(words)} choices for {len(plan.subtasks)} subtasks", "wrong_count")
        unknown = [word for word in words if word not in names]
        if unknown:
            raise CodecError(f"unknown model {unknown[0][:40]!r}; the pool is {list(names)}", "unknown_model")
        return Allocation(models=tuple(names[word] for word in words))

    def render_subtask(
        self, messages: Sequence[Message], plan: Plan, subtask: Subtask, answers: Mapping[int, str]
    ) -> list[Message]:
        return [Message(role="user", content=_worker_text(substitute(subtask.text, dict(answers))))]

    def render_query(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role="user", content=_worker_text(messages[-1].text))]

    def parse_answer(self, text: str) -> str:
        return _DIGITS.sub(lambda match: match.group()[::-1].lstrip("0") or "0", _joined(text))


def _numbers(query: str) -> list[str]:
    """The query's numbers in order, thousands separators dropped."""
    return [token.replace(",", "") for token in _QUERY_TOKEN.findall(query) if _is_number(token)]


def _is_number(token: str) -> bool:
    return "0" <= token[0] <= "9"


def _rewritten(step: str, rewrite: Callable[[str], str]) -> str:
    """The step's tokens separated by single spaces, each number replaced."""
    tokens = _STEP_TOKEN.findall(step)
    return " ".join(rewrite(token.replace(",", "")) if _is_number(token) else token for token in tokens)


def _filled(step: str, numbers: Sequence[str]) -> str:
    """The reverse of `_rewritten`. Raises: CodecError for a name that stands for no number."""
    joined = _joined(step)
    if match := _SIDE_BY_SIDE.search(joined):
        raise CodecError(f"two numbers side by side in a step: {match.group()[:40]!r}", "adjacent_numbers")

    def number(match: re.Match[str]) -> str:
        place = int(match[1]) if len(match[1]) < 6 else 0
        if not 1 <= place <= len(numbers):
            raise CodecError(
                f"{match.group()[:40]!r} stands for no number: the query has {len(numbers)}", "unknown_number"
            )
        return numbers[place - 1]

    return _PLACEHOLDER.sub(number, joined)


def _joined(text: str) -> str:
    """The text with single spaces and its digits joined to numbers: `6 4 5` is 645."""
    return _DIGIT_GAP.sub(lambda match: match.group().replace(" ", ""), " ".join(text.split()))


def _worker_text(text: str) -> str:
    return " ".join(_WORKER_TOKEN.findall(_DIGITS.sub(lambda match: match.group()[::-1], text.lower())))


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("Value error, ")]
    return (
        lines[0].removeprefix("Value error, ").partition(" [type=")[0]
        if lines
        else str(error).splitlines()[0]
    )
