"""Policies: which workers a step is given to, in turn, and which reply is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from r2_serve.lab.domains import everyday_steps
from r2_serve.lab.ladder.replies import Replies, Reply
from r2_serve.prompts import get_codec
from r2_serve.types import ModelCard, Plan, Subtask, substitute

CODEC = get_codec("compact")
Signal = Literal["least", "quantile"]
SIGNALS: tuple[Signal, ...] = ("least", "quantile")


@dataclass(frozen=True)
class Step:
    """One step of a plan with the answers filled in."""

    problem: int
    subtask: Subtask
    text: str
    """The step with the answers before it filled in."""
    is_last: bool
    prompt: str
    replies: Replies

    def ask(self, model: str) -> Reply:
        return self.replies.of(model, self.prompt)


Choice = list[tuple[str, Reply]]
"""The models that were asked, in order. The last reply is kept."""
Policy = Callable[[Step], Choice]


@dataclass(frozen=True)
class PlanRun:
    """The answer to a problem and the calls that it took."""

    answer: str
    calls: tuple[tuple[str, Reply], ...]

    def cost_usd(self, prices: Mapping[str, float]) -> float:
        """`prices` are in USD per 1M tokens."""
        return sum(prices[model] * reply.tokens for model, reply in self.calls) / 1e6


def run_plan(problem: int, plan: Plan, policy: Policy, replies: Replies) -> PlanRun:
    """Carries out a plan. Raises: Missing."""
    answers: dict[int, str] = {}
    calls: Choice = []
    for subtask in plan.subtasks:
        (message,) = CODEC.render_subtask((), plan, subtask, answers)
        is_last = subtask.id == len(plan.subtasks)
        text = substitute(subtask.text, answers)
        chosen = policy(Step(problem, subtask, text, is_last, message.text, replies))
        calls += chosen
        answers[subtask.id] = CODEC.parse_answer(chosen[-1][1].text)
    last = answers[len(plan.subtasks)]
    return PlanRun(last if plan.answer is None else substitute(plan.answer, answers), tuple(calls))


def constant(model: str) -> Policy:
    """Every step to one model."""
    return lambda step: [(model, step.ask(model))]


def final_only(small: str, large: str) -> Policy:
    """The last step to `large`, every other one to `small`."""
    return lambda step: constant(large if step.is_last else small)(step)


def allocated(models: Sequence[Sequence[str]]) -> Policy:
    """The models of each problem's steps, in order."""
    return lambda step: constant(models[step.problem][step.subtask.id - 1])(step)


def cascade(models: Sequence[str], thresholds: Sequence[float], signal: Signal) -> Policy:
    """One model after the other, until a reply's confidence reaches its threshold. The last one has none.

    With two models this is `dot`.
    """

    def choose(step: Step) -> Choice:
        asked: Choice = []
        for model, threshold in zip(models, (*thresholds, 0.0), strict=True):
            reply = step.ask(model)
            asked.append((model, reply))
            if getattr(reply, signal) >= threshold:
                break
        return asked

    return choose


def agreement(first: str, second: str, third: str) -> Policy:
    """Two models; where they differ, a third one decides."""

    def choose(step: Step) -> Choice:
        asked = [(model, step.ask(model)) for model in (first, second)]
        if asked[0][1].text and asked[0][1].text == asked[1][1].text:
            return asked
        return [*asked, (third, step.ask(third))]

    return choose


def oracle(cards: Sequence[ModelCard]) -> Policy:
    """The cheapest worker whose answer is right, which no router can know; else the last worker.

    It bounds what any allocation can reach on the same plans.
    """

    def choose(step: Step) -> Choice:
        replies = [(card.name, step.ask(card.name)) for card in sorted(cards, key=price)]
        try:
            exact = everyday_steps.solve(step.text)
        except ValueError:  # the plan is wrong, or an answer before this step
            return [(cards[-1].name, step.ask(cards[-1].name))]
        right = [each for each in replies if CODEC.parse_answer(each[1].text) == exact]
        return right[:1] or [(cards[-1].name, step.ask(cards[-1].name))]

    return choose


def chain_answer(reply: str) -> str:
    """The answer after the bar of a reply that writes every step; empty if there is none."""
    return CODEC.parse_answer(reply.partition("|")[2])


def price(card: ModelCard) -> float:
    """One price for prompt and reply, as embedded models have."""
    return float(card.usd_per_mtok_out)
