"""A baseline: one model that reads the whole problem and writes every step, then the answer.

It has about as many parameters as pool and router together, and about their training time. Its replies are in
the workers' notation, digits least significant first:
`3 * 9 = 7 2 ; 5 4 6 - 2 1 = 3 3 6 ; 7 2 + 3 3 6 = 0 6 6 | 0 6 6`. It is never served.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from r2_serve import EMBEDDED
from r2_serve.lab.domains import Task, everyday, everyday_steps, words
from r2_serve.lab.ladder.policies import chain_answer
from r2_serve.types import substitute
from r2_train.tiny.evaluate_pool import MAX_ANSWER_TOKENS, held_out_tasks, load_pool
from r2_train.tiny.pool_execution import execute
from r2_train.tiny.tiny_data import (
    CODEC,
    DomainName,
    ask,
    calculation_example,
    everyday_step_example,
    worker_prompt,
)
from r2_train.tiny.tiny_models import TextExample, TinyModel

MAX_REPLY_TOKENS: dict[DomainName, int] = {"words": 160, "everyday": 320}
"""Enough for the longest chain: eleven steps on numbers of four digits, or ten everyday steps."""


@dataclass(frozen=True)
class ChainReport:
    """The figures of the baseline."""

    num_tasks: int
    accuracy: float
    cost: float
    """Cost relative to the largest worker on every subtask of the reference plans."""
    tokens_per_task: float


def chain_examples(num_tasks: int, seed: int, domain: DomainName = "words") -> list[TextExample]:
    """Training problems with their solved reference plans."""
    if domain == "everyday":
        tasks = everyday.tasks("train", num_tasks, seed)
        return [_example(task, everyday_step_example, everyday_steps.solve) for task in tasks]
    problems = words.problems("train", num_tasks, seed)
    return [
        _example(words.task(p, random.Random(f"chain/{seed}/{p.key}")), calculation_example, words.solve)
        for p in problems
    ]


def evaluate_chain(
    model: TinyModel, num_tasks: int, seed: int = 0, domain: DomainName = "words"
) -> ChainReport:
    """Accuracy on held-out problems, and the cost relative to the shipped pool's largest worker."""
    tasks = held_out_tasks(domain, "test", num_tasks, seed)
    prompts = [CODEC.render_query(ask(task.query)) for task in tasks]
    replies, cost = model.chat(prompts, max_tokens=MAX_REPLY_TOKENS[domain])
    right = [chain_answer(reply) == task.gold for reply, task in zip(replies, tasks, strict=True)]
    plans, largest = [task.reference_plan for task in tasks], load_pool(domain, EMBEDDED)[-1]
    models = [(largest.name,) * len(plan.subtasks) for plan in plans]
    reference = execute(plans, models, {largest.name: largest}, MAX_ANSWER_TOKENS[domain])
    n = len(tasks)
    return ChainReport(n, sum(right) / n, cost / reference.cost, cost / model.num_params / n)


def _example(
    task: Task, step_example: Callable[[str], TextExample], solve: Callable[[str], str]
) -> TextExample:
    answers: dict[int, str] = {}
    written: dict[int, str] = {}
    chain = []
    for subtask in task.reference_plan.subtasks:
        text = substitute(subtask.text, answers)
        step = step_example(text)
        answers[subtask.id], written[subtask.id] = solve(text), step.target
        chain.append(f"{step.prompt} = {step.target}")
    template = task.reference_plan.answer or f"#{len(chain)}"
    answer = substitute(template.replace(",", " ,"), written)
    return TextExample(worker_prompt(task.query), f"{' ; '.join(chain)} | {answer}")
