"""The dialect of instruct chat models: JSON plans and allocations, under structured outputs where possible.

A prompt is the client's conversation, then the texts of other models (subtasks, answers) between tags, as
data, and at the end what is to be done (`r2_serve.prompts.conversation`).
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2_serve.config import PromptExample, Prompts
from r2_serve.errors import CodecError, counted
from r2_serve.prompts.conversation import followed_by, tagged
from r2_serve.types import REFERENCE, Allocation, Message, ModelCard, Plan, Subtask, references

MAX_REPLY_CHARS = 200_000
WORDED = r"^.{0,5}[0-9A-Za-z\u00C0-\u1FFF\u3040-\uD7FF].*$"
"""The pattern of a step's text in schemas: a letter or digit of any script among its first six characters, so
that no step is `...`. It has no lookahead and no `minLength` beside it, which grammars do not keep to."""
_Reply = TypeVar("_Reply", bound=BaseModel)

_DECOMPOSE = """Do not answer yet. Split what the conversation above asks for into subtasks for other \
models, and reply with JSON only:
{"subtasks": [{"id": 1, "text": "...", "depends_on": [], "needs_query": true}, ...]}
- Prefer 3 to 8 subtasks, never more than MAX; a question that needs no splitting gets one.
- A subtask is one short instruction that a small model can carry out.
- Write #k where it needs the answer of subtask k, and list k in depends_on.
- needs_query is false where the subtask's text and those answers are enough, without the conversation.
- Subtasks that do not need one another must not depend on one another: they run at the same time.
- The last subtask states the final answer to the question."""

_ALLOCATE = """Give each subtask of the plan above to one model of the pool: the cheapest that will solve it \
correctly. Reply with JSON only:
{"models": ["name for subtask 1", "name for subtask 2", ...]}, exactly one pool name per subtask, in order.
Pool, in the operator's order:"""

_CHOOSE = """Give each subtask to one model of the pool as well: write "model": "name" in it, with the \
cheapest model that will solve it correctly.
Pool, in the operator's order:"""

_WORK = """Carry out the step above, which is a part of a larger question.
Use the answers of earlier steps as given.
Reply with the result of this step only, briefly."""
_CONCLUDE = """Carry out the step above, the last one of the question.
Use the answers of earlier steps as given.
Reply to the user with the complete final answer."""


class _Step(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: int
    text: str = Field(min_length=1)
    depends_on: list[int] = []
    needs_query: bool = True
    model: str | None = None


class _PlanReply(BaseModel):
    model_config = ConfigDict(extra="ignore")
    subtasks: list[_Step] = Field(min_length=1)
    answer: str | None = None


class _AllocationReply(BaseModel):
    model_config = ConfigDict(extra="ignore")
    models: list[str]


class InstructCodec:
    """The `instruct` dialect; `texts` replace the built-in ones. The docstring of the module describes it."""

    name = "instruct"
    version = 2
    is_streamable = True
    takes_conversations = True

    def __init__(self, texts: Prompts | None = None) -> None:
        self._own = texts or Prompts()

    def with_prompts(self, prompts: Prompts | None) -> InstructCodec:
        return self if prompts is None else InstructCodec(prompts)

    def render_decompose(
        self, messages: Sequence[Message], max_subtasks: int, pool: Sequence[ModelCard] = ()
    ) -> list[Message]:
        task = [(self._own.decompose or _DECOMPOSE).replace("MAX", str(max_subtasks))]
        if pool:
            task.append("\n".join([_CHOOSE, *map(_pool_line, pool)]))
        replies = ((example.query, self._example(example, pool)) for example in self._own.examples)
        shown = (f"Question: {query}\nReply: {reply}" for query, reply in replies if reply is not None)
        return followed_by(messages, tagged("task", "\n\n".join([*task, *shown])))

    def _example(self, example: PromptExample, pool: Sequence[ModelCard]) -> str | None:
        """The reply that an example shows; None if it has no models where they are asked for."""
        if not pool:
            return self.format_plan(example.plan, example.query)
        if example.models is None or not {card.name for card in pool}.issuperset(example.models):
            return None
        return self.format_allocated(example.plan, Allocation(models=example.models), example.query, pool)

    def plan_schema(self, max_subtasks: int, pool: Sequence[ModelCard] = ()) -> dict[str, object] | None:
        """Each step by its place, so that its id is the place and it depends on earlier steps alone."""
        steps = [_step_schema(place, pool) for place in range(1, max_subtasks + 1)]
        return _closed_object(subtasks={"type": "array", "prefixItems": steps, "items": False, "minItems": 1})

    def format_plan(self, plan: Plan, query: str) -> str:
        return _formatted(plan, [{}] * len(plan.subtasks))

    def parse_plan(self, text: str, query: str) -> Plan:
        return _in_topological_order(_parsed(text, _PlanReply, "plan"))[0]

    def format_allocated(
        self, plan: Plan, allocation: Allocation, query: str, pool: Sequence[ModelCard]
    ) -> str:
        return _formatted(plan, [{"model": model} for model in allocation.models])

    def parse_allocated(self, text: str, query: str, pool: Sequence[ModelCard]) -> tuple[Plan, Allocation]:
        plan, models = _in_topological_order(_parsed(text, _PlanReply, "plan"))
        return plan, _among(models, pool)

    def render_allocate(
        self, messages: Sequence[Message], plan: Plan, pool: Sequence[ModelCard]
    ) -> list[Message]:
        lines = [self._own.allocate or _ALLOCATE, *map(_pool_line, pool)]
        names = {card.name for card in pool}
        for example in self._own.examples:
            if example.models is not None and names.issuperset(example.models):
                reply = self.format_allocation(Allocation(models=example.models), example.plan, pool)
                lines.append(f"\nPlan: {self.format_plan(example.plan, '')}\nReply: {reply}")
        task = "\n".join(lines)
        return followed_by(messages, f"{tagged('plan', self.format_plan(plan, ''))}\n{tagged('task', task)}")

    def allocation_schema(self, plan: Plan, pool: Sequence[ModelCard]) -> dict[str, object] | None:
        count = len(plan.subtasks)
        names = {"type": "string", "enum": [card.name for card in pool]}
        return _closed_object(models={"type": "array", "items": names, "minItems": count, "maxItems": count})

    def allocation_words(self, plan: Plan, pool: Sequence[ModelCard]) -> tuple[tuple[str, ...], ...]:
        return ()

    def format_allocation(self, allocation: Allocation, plan: Plan, pool: Sequence[ModelCard]) -> str:
        return json.dumps({"models": list(allocation.models)}, ensure_ascii=False)

    def parse_allocation(self, text: str, plan: Plan, pool: Sequence[ModelCard]) -> Allocation:
        reply = _parsed(text, _AllocationReply, "allocation")
        if len(reply.models) != len(plan.subtasks):
            raise CodecError(
                f"{counted(len(reply.models), 'choice')} for {counted(len(plan.subtasks), 'subtask')}",
                "wrong_count",
            )
        return _among(reply.models, pool)

    def render_subtask(
        self, messages: Sequence[Message], plan: Plan, subtask: Subtask, answers: Mapping[int, str]
    ) -> list[Message]:
        done = [
            tagged(f"answer_{i}", f"{plan.subtasks[i - 1].text}\n=> {answers[i]}") for i in sorted(answers)
        ]
        own, is_last = self._own, subtask.id == plan.final_id
        task = (own.last_step or _CONCLUDE) if is_last else (own.step or _WORK)
        return followed_by(messages, "\n".join([*done, tagged("step", subtask.text), tagged("task", task)]))

    def render_query(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages)

    def parse_answer(self, text: str) -> str:
        return text.strip()


def _pool_line(card: ModelCard) -> str:
    price = f"{card.usd_per_mtok_in:f}/{card.usd_per_mtok_out:f} USD per 1M tokens in/out"
    return f"- {card.name} ({card.group}; {price}) {card.description}".rstrip()


def _formatted(plan: Plan, more: Sequence[Mapping[str, object]]) -> str:
    """The plan as JSON, with `more` in each step."""
    steps = [
        {"id": s.id, "text": s.text, "depends_on": list(s.depends_on), "needs_query": s.needs_query, **extra}
        for s, extra in zip(plan.subtasks, more, strict=True)
    ]
    answer = {} if plan.answer is None else {"answer": plan.answer}
    return json.dumps({"subtasks": steps, **answer}, ensure_ascii=False)


def _among(models: Sequence[str | None], pool: Sequence[ModelCard]) -> Allocation:
    """The allocation to these models. Raises: CodecError if one is not in the pool."""
    known = {card.name for card in pool}
    unknown = [model for model in models if model not in known]
    if unknown:
        raise CodecError(
            f"unknown model {str(unknown[0])[:80]!r}; the pool is {sorted(known)}", "unknown_model"
        )
    return Allocation(models=tuple(model for model in models if model is not None))


def _step_schema(place: int, pool: Sequence[ModelCard]) -> dict[str, object]:
    integer: dict[str, object] = {"type": "integer"}
    earlier = (
        {"items": integer | {"enum": [*range(1, place)]}} if place > 1 else {"items": integer, "maxItems": 0}
    )
    return _closed_object(
        id=integer | {"enum": [place]},
        text={"type": "string", "pattern": WORDED},
        depends_on={"type": "array", **earlier},
        needs_query={"type": "boolean"},
        **({"model": {"type": "string", "enum": [card.name for card in pool]}} if pool else {}),
    )


def _closed_object(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _parsed(text: str, shape: type[_Reply], what: str) -> _Reply:
    """The first JSON object in `text`, which may have other text around it, checked against `shape`."""
    if len(text) > MAX_REPLY_CHARS:
        raise CodecError(f"a {what} of {len(text)} characters (limit {MAX_REPLY_CHARS})", "too_long")
    start = text.find("{")
    if start < 0:
        raise CodecError(f"no JSON object in the {what}: {text[:80]!r}", "not_json")
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
        return shape.model_validate(value, strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        raise CodecError(
            f"the {what} is malformed at {'.'.join(map(str, first['loc']))}: {first['msg']}", "wrong_shape"
        ) from e
    except (ValueError, RecursionError) as e:
        raise CodecError(f"the {what} is not JSON: {e}", "not_json") from e


def _in_topological_order(reply: _PlanReply) -> tuple[Plan, list[str | None]]:
    """The plan with ids 1..n, each subtask after those it depends on, otherwise in the model's order; and the
    models of its steps."""
    steps = {step.id: step for step in reply.subtasks}
    empty = [step.id for step in reply.subtasks if not any(map(str.isalnum, step.text))]
    if empty:
        raise CodecError(f"subtask {empty[0]} has no word: {steps[empty[0]].text[:40]!r}", "empty_step")
    if len(steps) != len(reply.subtasks):
        raise CodecError("the plan repeats a subtask id", "duplicate_id")
    needs = {step.id: set(step.depends_on) | references(step.text) for step in reply.subtasks}
    for step_id, needed in needs.items():
        if not needed <= steps.keys():
            raise CodecError(
                f"subtask {step_id} depends on unknown ids {sorted(needed - steps.keys())[:10]}", "unknown_id"
            )
    order = _topological(needs)
    number = {step_id: position for position, step_id in enumerate(order, 1)}

    def renumbered(text: str) -> str:
        return REFERENCE.sub(lambda match: f"#{number[int(match.group(1))]}", text)

    try:
        subtasks = tuple(
            Subtask(
                id=number[i],
                text=renumbered(steps[i].text),
                depends_on=tuple(sorted(number[d] for d in needs[i])),
                needs_query=steps[i].needs_query,
            )
            for i in order
        )
        answer = renumbered(reply.answer) if reply.answer else None
        return Plan(subtasks=subtasks, answer=answer), [steps[i].model for i in order]
    except (ValueError, KeyError) as e:
        raise CodecError(f"not a plan: {e}", "invalid_plan") from e


def _topological(needs: dict[int, set[int]]) -> list[int]:
    """A topological order that keeps a valid given order. Raises: CodecError on a cycle."""
    position = {step_id: i for i, step_id in enumerate(needs)}
    waiting = {step_id: len(needed) for step_id, needed in needs.items()}
    users: dict[int, list[int]] = {step_id: [] for step_id in needs}
    for step_id, needed in needs.items():
        for dependency in needed:
            users[dependency].append(step_id)
    ready = [(position[step_id], step_id) for step_id, count in waiting.items() if count == 0]
    order = []
    while ready:
        _, step_id = heapq.heappop(ready)
        order.append(step_id)
        for user in users[step_id]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, (position[user], user))
    if len(order) < len(needs):
        raise CodecError("the plan has a cycle", "cycle")
    return order
