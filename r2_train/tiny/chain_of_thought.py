"""A baseline: one model that reads the whole word problem and writes every step, then the answer.

It has about as many parameters as pool and router together, and about their training time. Its replies are in
the workers' notation, digits least significant first:
`3 * 9 = 7 2 ; 5 4 6 - 2 1 = 3 3 6 ; 7 2 + 3 3 6 = 0 6 6 | 0 6 6`. It is never served.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from r2_serve.lab.domains import Task, words
from r2_train.tiny.evaluate_pool import MAX_ANSWER_TOKENS, held_out_tasks, load_pool
from r2_train.tiny.pool_execution import execute
from r2_train.tiny.tiny_data import CODEC, ask, format_answer, solved_steps, worker_prompt
from r2_train.tiny.tiny_models import TextExample, TinyModel

MAX_REPLY_TOKENS = 160
"""Enough for the longest chain: eleven steps on numbers of four digits."""


@dataclass(frozen=True)
class ChainReport:
    """The figures of the baseline."""

    num_tasks: int
    accuracy: float
    cost: float
    """Cost relative to the largest worker on every subtask of the reference plans."""
    tokens_per_task: float


def chain_examples(num_tasks: int, seed: int) -> list[TextExample]:
    """Training problems with their solved reference plans."""
    problems = words.problems("train", num_tasks, seed)
    return [_example(words.task(p, random.Random(f"chain/{seed}/{p.key}"))) for p in problems]


def evaluate_chain(model: TinyModel, model_dir: Path, num_tasks: int, seed: int = 0) -> ChainReport:
    """Accuracy and cost on held-out problems. `model_dir` holds the pool that the cost is relative to."""
    tasks = held_out_tasks("words", "test", num_tasks, seed)
    prompts = [CODEC.render_query(ask(task.query)) for task in tasks]
    replies, cost = model.chat(prompts, max_tokens=MAX_REPLY_TOKENS)
    right = [chain_answer(reply) == task.gold for reply, task in zip(replies, tasks, strict=True)]
    plans, largest = [task.reference_plan for task in tasks], load_pool("words", model_dir)[-1]
    models = [(largest.name,) * len(plan.subtasks) for plan in plans]
    reference = execute(plans, models, {largest.name: largest}, MAX_ANSWER_TOKENS["words"])
    n = len(tasks)
    return ChainReport(n, sum(right) / n, cost / reference.cost, cost / model.num_params / n)


def chain_answer(reply: str) -> str:
    """The answer after the bar; empty if there is none."""
    return CODEC.parse_answer(reply.partition("|")[2])


def _example(task: Task) -> TextExample:
    steps = solved_steps(task.reference_plan)
    chain = " ; ".join(f"{worker_prompt(step)} = {format_answer(words.solve(step))}" for step in steps)
    return TextExample(worker_prompt(task.query), f"{chain} | {format_answer(task.gold)}")
