"""The ways of answering that an evaluation compares, each a composition of asks.

| policy | what it does | where the pool speaks the compact dialect |
|---|---|---|
| `r2` | the virtual model, as clients ask it | |
| `single:MODEL` | MODEL is asked directly | |
| `cot:MODEL` | MODEL decomposes, then answers each step after all before it | the router's decomposer plans |
| `tot:MODEL` | `cot` with N answers per step, the best by a scoring prompt | the most confident is kept |
| `datashunt:SMALL,LARGE` | SMALL judges which of them gets the whole task | SMALL answers; LARGE if unsure |
| `dot:SMALL,LARGE` | router's plan as a DAG; a step on which SMALL is unsure goes to LARGE | |
| `random` | router's plan, models drawn with the shares that `r2` had in the same run | |
| `final-only:SMALL,LARGE` | router's plan, LARGE for the last step alone | |
| `cascade:M1,M2,...` | M1, and the next where it is unsure | |
| `all:MODEL`, `one:auto`, ... | the virtual model under a policy of serving | |
| `MODULE:NAME` | a function of the user's own | |
| `dot:tuned`, ... | pair, chain and threshold that do best on development tasks (`tuning`) | |

A compact model of some thousand parameters can neither plan nor judge: it answers one line with one line. For
it the router's decomposer plans, and confidence stands for judgement. A compact prompt of a step holds only
the answers that the step names, so a chain and a DAG of the same plan ask the same. A model is *unsure* if
the 0.4-quantile of the probabilities of its answer's tokens is below tau (Division-of-Thoughts, arXiv
2502.04392, which fits tau per benchmark). A step that SMALL is sure of is not asked again: the probe's answer
is the answer, which makes these baselines cheaper than as published.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from pydantic import Field

from r2_serve.config import Config
from r2_serve.config.imported import imported
from r2_serve.errors import CodecError
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation import judging
from r2_serve.lab.evaluation.asker import Asked, AskFailed
from r2_serve.lab.evaluation.desk import Desk, Setting, Solved, user
from r2_serve.prompts import get_codec
from r2_serve.router.executor import execute
from r2_serve.types import Message, Plan, Sampling, Subtask, substitute

_GREEDY = Sampling(temperature=0.0)
_PROBE = Sampling(temperature=0.0, logprobs=True)
R2, RANDOM, ALL = "r2", "random", "all"
TUNED = "tuned"
"""`dot:tuned` stands for the pair and threshold that `tuning` chooses."""
TUNABLE = ("dot", "datashunt", "cascade")


class PolicyConfig(Config):
    """Settings of the baselines."""

    tau: float = Field(default=0.9, ge=0, le=1)
    """Confidence below which `dot`, `datashunt` (compact) and `cascade` take the larger model."""
    num_candidates: int = Field(default=2, ge=1, le=16)
    """Answers per step of `tot`."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Sampling temperature of the answers of `tot`."""
    max_parallel: int = Field(default=16, ge=1)
    """Most steps of one plan that `dot` has under way at a time."""


@dataclass(frozen=True)
class Routed:
    """The virtual model itself, under its configured allocation policy or the one given in `allocation`."""

    name: str
    allocation: str | None = None

    async def answer(self, task: Task, desk: Desk) -> Solved:
        asked = await desk.ask(
            desk.setting.virtual_model, user(task.query), policy=self.allocation, sampling=Sampling()
        )
        return Solved.of(asked)


@dataclass(frozen=True)
class Own:
    """A user's own way of answering: a coroutine function of the task and the desk, by import path.

    It returns the answer as text, or a `Solved`.
    """

    name: str

    async def answer(self, task: Task, desk: Desk) -> Solved:
        function = cast("Callable[[Task, Desk], Awaitable[object]]", imported(self.name))
        try:
            answer = await function(task, desk)
        except AskFailed:
            raise
        except Exception as e:
            raise AskFailed(f"{self.name} failed: {type(e).__name__}: {e}") from e
        if isinstance(answer, Solved):
            return answer
        if not isinstance(answer, str):
            raise AskFailed(f"{self.name} returned {answer!r:.60}, expected a text or a Solved")
        return Solved(answer)


@dataclass(frozen=True)
class Single:
    """One model is asked directly."""

    name: str
    model: str

    async def answer(self, task: Task, desk: Desk) -> Solved:
        return Solved((await desk.ask(self.model, user(task.query))).text)


@dataclass(frozen=True)
class ChainOfThought:
    """One model decomposes and carries out every step in turn."""

    name: str
    model: str

    async def answer(self, task: Task, desk: Desk) -> Solved:
        made = await _plan_by(self.model, task, desk)
        if made.is_fallback:
            answered = await desk.ask(self.model, user(task.query), stage="execute", subtask=1)
            return Solved(answered.text, made.plan, (self.model,), True, (answered.text,))
        asked = await desk.ask(
            desk.setting.virtual_model, user(task.query), plan=chain(made.plan), policy=f"all:{self.model}"
        )
        return Solved.of(asked)


@dataclass(frozen=True)
class TreeOfThoughts:
    """Chain of thought in which the best of several answers to each step goes on."""

    name: str
    model: str
    config: PolicyConfig

    async def answer(self, task: Task, desk: Desk) -> Solved:
        made = await _plan_by(self.model, task, desk)
        made = made if made.is_fallback else _Planned(chain(made.plan))
        answers: dict[int, str] = {}
        for subtask in made.plan.subtasks:
            inputs = {i: answers[i] for i in subtask.depends_on}
            answers[subtask.id] = await self._best_answer(task, desk, made, subtask, inputs)
        return made.solved(answers, dict.fromkeys(answers, self.model))

    async def _best_answer(
        self, task: Task, desk: Desk, made: _Planned, subtask: Subtask, inputs: dict[int, str]
    ) -> str:
        messages = made.step_messages(self.model, task, desk.setting, subtask, inputs)
        candidates = []
        for seed in range(self.config.num_candidates):
            sampling = Sampling(
                temperature=self.config.temperature, seed=seed, logprobs=_is_compact(self.model, desk.setting)
            )
            candidates.append(
                await desk.ask(self.model, messages, sampling=sampling, stage="execute", subtask=subtask.id)
            )
        scores = [await self._score(task, desk, subtask, inputs, candidate) for candidate in candidates]
        return candidates[scores.index(max(scores))].text

    async def _score(
        self, task: Task, desk: Desk, subtask: Subtask, inputs: dict[int, str], candidate: Asked
    ) -> float:
        if _is_compact(self.model, desk.setting):
            return confidence_of(candidate)
        prompt = judging.score_prompt(task.query, substitute(subtask.text, inputs), candidate.text)
        return judging.parse_score(
            (await desk.ask(self.model, prompt, stage="execute", subtask=subtask.id)).text
        )


@dataclass(frozen=True)
class DataShunt:
    """The whole task goes to a small or to a large model, by its judged difficulty."""

    name: str
    small: str
    large: str
    config: PolicyConfig

    async def answer(self, task: Task, desk: Desk) -> Solved:
        if _is_compact(self.small, desk.setting):
            return await Cascade(self.name, (self.small, self.large), self.config).answer(task, desk)
        judged = await desk.ask(self.small, judging.difficulty_prompt(task.query), stage="allocate")
        model = self.large if judging.parse_is_hard(judged.text) else self.small
        return Solved((await desk.ask(model, judging.step_by_step_prompt(task.query))).text)


@dataclass(frozen=True)
class DivisionOfThoughts:
    """The router's plan as a DAG; a step goes to the large model if the small one is unsure of it."""

    name: str
    small: str
    large: str
    config: PolicyConfig

    async def answer(self, task: Task, desk: Desk) -> Solved:
        made = await _plan_by_router(task, desk)
        models: dict[int, str] = {}

        async def run(subtask: Subtask, inputs: dict[int, str]) -> str:
            asked = await desk.ask(
                self.small,
                made.step_messages(self.small, task, desk.setting, subtask, inputs),
                sampling=_PROBE,
                stage="execute",
                subtask=subtask.id,
            )
            models[subtask.id] = self.small
            if confidence_of(asked) < self.config.tau:
                messages = made.step_messages(self.large, task, desk.setting, subtask, inputs)
                asked = await desk.ask(self.large, messages, stage="execute", subtask=subtask.id)
                models[subtask.id] = self.large
            return asked.text

        return made.solved(await execute(made.plan, run, max_parallel=self.config.max_parallel), models)


@dataclass(frozen=True)
class Cascade:
    """Models in turn until one is sure of its answer; the last answer counts in any case.

    Source: FrugalGPT (arXiv 2305.05176).
    """

    name: str
    models: tuple[str, ...]
    config: PolicyConfig

    async def answer(self, task: Task, desk: Desk) -> Solved:
        for model in self.models[:-1]:
            asked = await desk.ask(model, user(task.query), sampling=_PROBE)
            if confidence_of(asked) >= self.config.tau:
                return Solved(asked.text)
        return Solved((await desk.ask(self.models[-1], user(task.query))).text)


# -- plans ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    """A plan that a policy carries out itself."""

    plan: Plan
    is_fallback: bool = False
    """True if no plan could be made: its one step is the whole query."""

    def step_messages(
        self, model: str, task: Task, setting: Setting, subtask: Subtask, inputs: dict[int, str]
    ) -> tuple[Message, ...]:
        """The messages that make `model` see the very prompt that the router would show it.

        The engine renders a compact model's prompt from a plain text; an instruct model's messages pass
        through.
        """
        if self.is_fallback:
            return user(task.query)
        if _is_compact(model, setting):
            return user(substitute(subtask.text, inputs))
        return tuple(
            get_codec(setting.cards[model].codec).render_subtask(user(task.query), self.plan, subtask, inputs)
        )

    def solved(self, answers: dict[int, str], models: dict[int, str]) -> Solved:
        last = answers[len(self.plan.subtasks)]
        text = last if self.plan.answer is None else substitute(self.plan.answer, answers)
        chosen = tuple(models[i] for i in sorted(models))
        return Solved(text, self.plan, chosen, self.is_fallback, tuple(answers[i] for i in sorted(answers)))


async def _plan_by(model: str, task: Task, desk: Desk) -> _Planned:
    """The plan of `model`, or the router's if `model` is compact; one step if the reply is not a plan."""
    setting = desk.setting
    if _is_compact(model, setting):
        return await _plan_by_router(task, desk)
    codec = get_codec(setting.cards[model].codec)
    sampling = _GREEDY.model_copy(update={"json_schema": codec.plan_schema(setting.max_subtasks)})
    prompt = codec.render_decompose(user(task.query), setting.max_subtasks)
    reply = await desk.ask(model, prompt, sampling=sampling, stage="decompose")
    with suppress(CodecError):
        plan = codec.parse_plan(reply.text, task.query)
        if len(plan.subtasks) <= setting.max_subtasks:
            return _Planned(plan)
    return _Planned(Plan.single(task.query), is_fallback=True)


async def _plan_by_router(task: Task, desk: Desk) -> _Planned:
    asked = await desk.ask(desk.setting.virtual_model, user(task.query), is_plan_only=True)
    if asked.trace.plan is None:
        raise AskFailed(f"{desk.setting.virtual_model} gave no plan")
    return _Planned(asked.trace.plan, asked.trace.plan_fallback is not None)


def chain(plan: Plan) -> Plan:
    """The same steps, each of which depends on all before it."""
    steps = [step.model_copy(update={"depends_on": tuple(range(1, step.id))}) for step in plan.subtasks]
    return Plan(subtasks=tuple(steps), answer=plan.answer)


def confidence_of(asked: Asked) -> float:
    """Raises: AskFailed if the model gives no probabilities: no other number may stand for a confidence."""
    if asked.confidence is None:
        raise AskFailed(f"{asked.trace.model} returned no log-probabilities, which this policy decides by")
    return asked.confidence


def _is_compact(model: str, setting: Setting) -> bool:
    return setting.cards[model].codec == "compact"
