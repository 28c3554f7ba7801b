"""Sizes of the calls of a request: the router's own codecs render each prompt once per form of plan, and
words are counted.

A token is a word, as in the scripted engine, times `tokens_per_word`. Only requests that bring their plan can
be simulated, as the plan of a real model is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from r2_serve.config import ModelConfig, VirtualModelConfig
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.choices import policy_of, steps_by_policy
from r2_serve.lab.workload import Request, Step
from r2_serve.prompts import get_codec
from r2_serve.types import Allocation, Message, Subtask


@dataclass(frozen=True, slots=True)
class Edges:
    """The dependencies of a plan's subtasks. Position i is subtask i + 1."""

    inputs: tuple[tuple[int, ...], ...]
    num_waiting: tuple[int, ...]
    users: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    """Positions, longest chain to the end first, as in `r2_serve.router.executor`."""
    rank: tuple[int, ...]
    """Place of each position in `order`."""
    roots: tuple[int, ...]
    """Ranks of the positions without inputs."""

    @classmethod
    def of(cls, depends_on: Sequence[Sequence[int]]) -> Self:
        inputs = tuple(tuple(subtask_id - 1 for subtask_id in needed) for needed in depends_on)
        positions = range(len(inputs))
        users = tuple(tuple(i for i in positions if position in inputs[i]) for position in positions)
        heights = [1] * len(users)
        for position in reversed(positions):
            heights[position] = 1 + max((heights[user] for user in users[position]), default=0)
        order = tuple(sorted(positions, key=lambda i: (-heights[i], i)))
        rank = tuple(map(order.index, positions))
        roots = tuple(place for place, i in enumerate(order) if not inputs[i])
        return cls(inputs, tuple(map(len, inputs)), users, order, rank, roots)


@dataclass(frozen=True, slots=True)
class PlanForm:
    """The common part of requests with the same edges and models, in words of a text without padding."""

    models: tuple[str, ...]
    edges: Edges
    text_words: int
    plan_prompt: int
    plan_reply: int
    pick_prompt: int
    pick_reply: int
    work_prompts: tuple[int, ...]
    """Prompt of each subtask without the answers that it reads."""
    max_replies: tuple[int, ...]
    """Longest reply that each subtask's model is asked for, in tokens."""


@dataclass(slots=True)
class Sizes:
    """Sizes of one request in tokens. Lists are by position of the subtask."""

    form: PlanForm
    prompts: list[float]
    replies: list[float]
    text: float
    plan_prompt: float = 0.0
    plan_reply: float = 0.0
    pick_prompt: float = 0.0
    pick_reply: float = 0.0

    def in_one_step(self) -> Sizes:
        """Gives the whole text to one model, which writes the reply of the last subtask."""
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
        self._virtual, self._models, self._policy = virtual, models, policy_of(virtual)
        self._max_subtasks, self._factor = max_subtasks, tokens_per_word
        self._forms: dict[tuple[object, ...], PlanForm] = {}

    def of(self, request: Request) -> Sizes:
        """Sizes of `request`. Raises: ConfigError if it brings no plan, or names a model outside the pool."""
        steps = steps_by_policy(self._policy, request, brought_steps(request))
        key = tuple([(step.model, step.depends_on) for step in steps])
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._form(steps)
        return self._sized(request.prompt_words, steps, form)

    def _sized(self, prompt_words: int, steps: Sequence[Step], form: PlanForm) -> Sizes:
        factor, padding = self._factor, max(0, prompt_words - form.text_words)
        words = [step.reply_tokens for step in steps]
        prompts = [
            (base + padding + sum([words[i] for i in inputs])) * factor
            for base, inputs in zip(form.work_prompts, form.edges.inputs)
        ]
        return Sizes(
            form,
            prompts,
            [min(count * factor, most) for count, most in zip(words, form.max_replies)],
            (form.text_words + padding) * factor,
            (form.plan_prompt + padding) * factor,
            form.plan_reply * factor,
            (form.pick_prompt + padding) * factor,
            form.pick_reply * factor,
        )

    def _form(self, steps: Sequence[Step]) -> PlanForm:
        """Renders every prompt as the router does, with empty answers."""
        virtual, models = self._virtual, tuple(step.model for step in steps)
        if unknown := sorted(set(models) - set(virtual.pool)):
            raise ConfigError(f"the workload asks for {unknown}, which the pool {list(virtual.pool)} lacks")
        bare = Request(0, 0.0, "", tuple(steps))
        plan, text = bare.plan, bare.text
        assert plan is not None, "the request has steps"
        codecs = {name: get_codec(card.codec) for name, card in self._models.items()}
        planner, picker = codecs[virtual.decomposer.model], codecs[virtual.allocator.model]
        cards, messages = [self._models[name] for name in virtual.pool], [Message(role="user", content=text)]

        allocates = virtual.decomposer.allocates
        offered, allocation = cards if allocates else [], Allocation(models=models)
        reply = (
            planner.format_allocated(plan, allocation, text, cards)
            if allocates
            else planner.format_plan(plan, text)
        )

        def work_prompt(step: Step, subtask: Subtask) -> list[Message]:
            codec = codecs[step.model]
            if len(steps) == 1 and codec.takes_conversations:
                return codec.render_query(messages)
            return codec.render_subtask(messages, plan, subtask, dict.fromkeys(step.depends_on, ""))

        return PlanForm(
            models=models,
            edges=Edges.of([step.depends_on for step in steps]),
            text_words=_words(text),
            plan_prompt=_count(planner.render_decompose(messages, self._max_subtasks, offered)),
            plan_reply=_words(reply),
            pick_prompt=_count(picker.render_allocate(messages, plan, cards)),
            pick_reply=_words(picker.format_allocation(allocation, plan, cards)),
            work_prompts=tuple(_count(work_prompt(*pair)) for pair in zip(steps, plan.subtasks)),
            max_replies=tuple(self._models[step.model].reply_tokens for step in steps),
        )


def passed_through(request: Request, model: str, tokens_per_word: float) -> Sizes:
    """Sizes of a request that goes straight to a pool model, which writes the reply of the last subtask.

    Raises: ConfigError if the request brings no plan.
    """
    steps, text = brought_steps(request), request.prompt_tokens * tokens_per_word
    form = PlanForm((model,), Edges.of([()]), 0, 0, 0, 0, 0, (0,), (0,))
    return Sizes(form, [text], [steps[-1].reply_tokens * tokens_per_word], text)


def brought_steps(request: Request) -> tuple[Step, ...]:
    """The steps of `request`. Raises: ConfigError if it has none."""
    if request.steps is None:
        raise ConfigError(
            "tasks of a benchmark bring no plans, and their calls are not known: use `kind: synthetic` tasks"
        )
    return request.steps


def _words(text: str) -> int:
    return len(text.split())


def _count(messages: Sequence[Message]) -> int:
    return sum(_words(message.text) for message in messages)
