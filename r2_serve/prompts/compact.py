"""The dialect of the embedded tiny models: one short line in, one short line out.

    decompose   ann has 3 bags of 9 coins . bob has 6 4 5 coins and loses 1 2 . how many coins in all ?
                -> 3 * 9 ; 6 4 5 - 1 2 ; #1 + #2
                turn around right twice after run  ->  run ; turn around right | #1 #2 #2
    allocate    3 * 9 ; 6 4 5 - 1 2 ; #1 + #2      ->  @1 @3 @2         (@k: k-th model of the pool)
    subtask     5 4 6 - 2 1                        ->  3 3 6            (least significant digit first)

Digits are separate tokens. Plans write them in reading order, as they are copied from the query; workers
see them least significant first, the order in which carries are computed. `|` opens the answer template.
The chat template shipped with each model appends the arrow that asks for the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from r2_serve.errors import CodecError
from r2_serve.types import Allocation, Message, ModelCard, Plan, Subtask, references, substitute

_TOKEN = re.compile(r"#[0-9]+|[0-9]|[A-Za-z_]+|[^\sA-Za-z0-9_]")
_DIGIT_GAP = re.compile(r"(?<![#0-9])[0-9](?: [0-9])+(?!\S)")
_NUMBER = re.compile(r"(?<!#)\b[0-9]+\b")
MAX_REPLY_CHARS = 20_000


class CompactCodec:
    """See the module's text."""

    name = "compact"
    version = 1
    is_streamable = False

    def render_decompose(self, query: str, max_subtasks: int) -> list[Message]:
        return [Message(role="user", content=_spaced(query.lower()))]

    def plan_schema(self, max_subtasks: int) -> dict[str, Any] | None:
        return None

    def format_plan(self, plan: Plan) -> str:
        steps = " ; ".join(_spaced(subtask.text) for subtask in plan.subtasks)
        return steps if plan.answer is None else f"{steps} | {plan.answer}"

    def parse_plan(self, text: str) -> Plan:
        if len(text) > MAX_REPLY_CHARS:
            raise CodecError(f"a plan of {len(text)} characters (limit {MAX_REPLY_CHARS})", "too_long")
        body, bar, answer = text.strip().partition("|")
        steps = [_joined(step.strip()) for step in body.split(";")]
        if not all(steps):
            raise CodecError("the plan has an empty step", "empty_step")
        try:
            subtasks = tuple(Subtask(id=i, text=step, depends_on=tuple(sorted(references(step)))) for i, step in enumerate(steps, 1))
            return Plan(subtasks=subtasks, answer=answer.strip() if bar else None)
        except ValueError as e:
            raise CodecError(f"not a plan: {_first_line(e)}", "invalid_plan") from e

    def render_allocate(self, query: str, plan: Plan, pool: Sequence[ModelCard]) -> list[Message]:
        return [Message(role="user", content=self.format_plan(Plan(subtasks=plan.subtasks)))]

    def allocation_schema(self, plan: Plan, pool: Sequence[ModelCard]) -> dict[str, Any] | None:
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

    def render_subtask(self, messages: Sequence[Message], plan: Plan, subtask: Subtask, answers: Mapping[int, str]) -> list[Message]:
        return [Message(role="user", content=_worker_text(substitute(subtask.text, dict(answers))))]

    def render_query(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role="user", content=_worker_text(messages[-1].content))]

    def parse_answer(self, text: str) -> str:
        return _NUMBER.sub(lambda match: match.group()[::-1], _joined(text.strip()))


def _spaced(text: str) -> str:
    """Tokens separated by single spaces, each digit alone."""
    return " ".join(_TOKEN.findall(text))


def _joined(text: str) -> str:
    """The reverse for numbers: `6 4 5` is 645."""
    return _DIGIT_GAP.sub(lambda match: match.group().replace(" ", ""), text)


def _worker_text(text: str) -> str:
    return _spaced(_NUMBER.sub(lambda match: match.group()[::-1], text.lower()))


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("Value error, ")]
    return lines[0].removeprefix("Value error, ").partition(" [type=")[0] if lines else str(error).splitlines()[0]
