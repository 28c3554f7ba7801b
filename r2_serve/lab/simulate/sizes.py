"""How large the calls of a request are: prompts are rendered by the router's own codecs, once per form of plan, and counted.

Tokens are words, as the scripted engine counts them, times `tokens_per_word`. Only requests that bring their plan can be
simulated: what a real model would plan is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from r2_serve.config import ModelConfig, VirtualModelConfig
from r2_serve.errors import ConfigError
from r2_serve.lab.workload import Request, Step
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import Allocation, Message


@dataclass(frozen=True, slots=True)
class Edges:
    """Who waits for whom. Position i is subtask i + 1."""

    inputs: tuple[tuple[int, ...], ...]
    num_waiting: tuple[int, ...]
    users: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    """Positions, longest chain to the end first, as in `r2_serve.router.executor`."""
    rank: tuple[int, ...]
    """Of each position, its place in `order`."""
    roots: tuple[int, ...]
    """Ranks of those that wait for nobody."""

    @classmethod
    def of(cls, depends_on: Sequence[Sequence[int]]) -> Self:
        inputs = tuple(tuple(subtask_id - 1 for subtask_id in needed) for needed in depends_on)
        users = tuple(
            tuple(i for i, needed in enumerate(inputs) if position in needed)
            for position in range(len(inputs))
        )
        heights = [1] * len(users)
        for position in reversed(range(len(users))):
            heights[position] = 1 + max((heights[user] for user in users[position]), default=0)
        order = sorted(range(len(inputs)), key=lambda i: (-heights[i], i))
        roots = tuple(rank for rank, i in enumerate(order) if not inputs[i])
        return cls(
            inputs,
            tuple(map(len, inputs)),
            users,
            tuple(order),
            tuple(map(order.index, range(len(order)))),
            roots,
        )


@dataclass(frozen=True, slots=True)
class Form:
    """What requests have in common whose plans have the same edges and models. Counts in words, of a text without padding."""

    models: tuple[str, ...]
    edges: Edges
    text_words: int
    plan_prompt: int
    plan_reply: int
    pick_prompt: int
    pick_reply: int
    work_prompts: tuple[int, ...]
    """Of each subtask, without the answers that it gets to read."""
    max_replies: tuple[int, ...]
    """Longest reply that each one's model is asked for, in tokens."""


@dataclass(slots=True)
class Sizes:
    """Of one request, in tokens; lists by position of the subtask."""

    form: Form
    prompts: list[float]
    replies: list[float]
    plan_prompt: float
    plan_reply: float
    pick_prompt: float
    pick_reply: float
    text: float

    def in_one_step(self) -> Sizes:
        """The whole text to one model, which writes what the last subtask would have been asked for."""
        form = replace(self.form, models=self.form.models[-1:], edges=Edges.of([()]))
        return replace(self, form=form, prompts=[self.text], replies=self.replies[-1:])


class Sizer:
    """Sizes of the requests for one virtual model."""

    def __init__(
        self,
        virtual: VirtualModelConfig,
        models: Mapping[str, ModelConfig],
        max_subtasks: int,
        tokens_per_word: float = 1.0,
    ) -> None:
        self._virtual, self._models, self._max_subtasks, self._factor = (
            virtual,
            models,
            max_subtasks,
            tokens_per_word,
        )
        self._forms: dict[tuple[object, ...], Form] = {}

    def of(self, request: Request) -> Sizes:
        """Raises: ConfigError where the request brings no plan, or names a model outside the pool."""
        steps = brought_steps(request)
        key = tuple([(step.model, step.depends_on) for step in steps])
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._form(steps)
        return self._sized(request.prompt_words, steps, form)

    def _sized(self, prompt_words: int, steps: Sequence[Step], form: Form) -> Sizes:
        factor, padding = self._factor, max(0, prompt_words - form.text_words)
        words = [step.reply_tokens for step in steps]
        prompts = [
            (base + padding + sum([words[i] for i in inputs])) * factor
            if inputs
            else (base + padding) * factor
            for base, inputs in zip(form.work_prompts, form.edges.inputs)
        ]
        return Sizes(
            form,
            prompts,
            [min(count * factor, most) for count, most in zip(words, form.max_replies)],
            (form.plan_prompt + padding) * factor,
            form.plan_reply * factor,
            (form.pick_prompt + padding) * factor,
            form.pick_reply * factor,
            (form.text_words + padding) * factor,
        )

    def _form(self, steps: Sequence[Step]) -> Form:
        """Every prompt rendered as the router does, with empty answers."""
        virtual, models = self._virtual, tuple(step.model for step in steps)
        if unknown := sorted(set(models) - set(virtual.pool)):
            raise ConfigError(
                f"the workload gives subtasks to {unknown}, not in the pool {list(virtual.pool)}"
            )
        bare = Request(0, 0.0, "", tuple(steps))
        plan, text = bare.plan, bare.text
        assert plan is not None, "as it has steps"
        planner, picker = (self._codec(section.model) for section in (virtual.decomposer, virtual.allocator))
        cards, messages = [self._models[name] for name in virtual.pool], [Message(role="user", content=text)]
        return Form(
            models=models,
            edges=Edges.of([step.depends_on for step in steps]),
            text_words=_words(text),
            plan_prompt=_count(planner.render_decompose(text, self._max_subtasks)),
            plan_reply=_words(planner.format_plan(plan, text)),
            pick_prompt=_count(picker.render_allocate(text, plan, cards)),
            pick_reply=_words(picker.format_allocation(Allocation(models=models), cards)),
            work_prompts=tuple(
                _count(
                    self._codec(step.model).render_subtask(
                        messages, plan, subtask, dict.fromkeys(step.depends_on, "")
                    )
                )
                for step, subtask in zip(steps, plan.subtasks)
            ),
            max_replies=tuple(self._models[step.model].max_tokens for step in steps),
        )

    def _codec(self, model: str) -> Codec:
        return get_codec(self._models[model].codec)


def passed_through(request: Request, model: str, tokens_per_word: float) -> Sizes:
    """Of a request that goes straight to a pool model, which answers what the last subtask asks for."""
    steps, text = brought_steps(request), request.prompt_tokens * tokens_per_word
    form = Form((model,), Edges.of([()]), 0, 0, 0, 0, 0, (0,), (0,))
    return Sizes(form, [text], [steps[-1].reply_tokens * tokens_per_word], 0.0, 0.0, 0.0, 0.0, text)


def brought_steps(request: Request) -> tuple[Step, ...]:
    """Raises: ConfigError where there are none."""
    if request.steps is None:
        raise ConfigError(
            "tasks of a benchmark bring no plans, so their calls are not known: simulate `kind: synthetic` tasks"
        )
    return request.steps


def _words(text: str) -> int:
    return len(text.split())


def _count(messages: Sequence[Message]) -> int:
    return sum(_words(message.content) for message in messages)
