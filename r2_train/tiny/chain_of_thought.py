"""The baseline that routing has to beat: one model that reads the whole word problem and writes every step, then the answer.

It has about the parameters of pool and router together and gets about their training time. Its replies are in the workers'
notation, digits least significant first: `3 * 9 = 7 2 ; 5 4 6 - 2 1 = 3 3 6 ; 7 2 + 3 3 6 = 0 6 6 | 0 6 6`. It is trained and
measured here, and never served.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2_serve.lab.domains import Task, words
from r2_train.tiny.evaluate_pool import MAX_ANSWER_TOKENS, held_out_tasks, load_pool
from r2_train.tiny.pool_execution import execute
from r2_train.tiny.tiny_data import CODEC, ask, format_answer, solved_steps
from r2_train.tiny.tiny_models import Example, TinyModel

MAX_REPLY_TOKENS = 160
"""More than the longest chain of eleven steps on numbers of four digits."""


@dataclass(frozen=True)
class ChainReport:
    """What `evaluate_chain` measured. Cost is relative to the largest worker on every subtask of the reference plans."""

    num_tasks: int
    accuracy: float
    cost: float
    tokens_per_task: float


def chain_examples(num_tasks: int, seed: int) -> list[Example]:
    """Train problems, each with its reference plan carried out."""
    problems = words.problems("train", num_tasks, seed)
    return [
        _example(words.task(problem, random.Random(f"chain/{seed}/{problem.key}"))) for problem in problems
    ]


def evaluate_chain(model: TinyModel, model_dir: Path, num_tasks: int, seed: int = 0) -> ChainReport:
    """Accuracy and cost on held-out problems; `model_dir` holds the pool that the cost is relative to."""
    tasks = held_out_tasks("words", "test", num_tasks, seed)
    replies = model.chat([CODEC.render_query(ask(task.query)) for task in tasks], max_tokens=MAX_REPLY_TOKENS)
    reference = _reference_cost(tasks, load_pool("words", model_dir)[-1])
    return ChainReport(
        num_tasks=len(tasks),
        accuracy=sum(
            chain_answer(reply.text) == task.gold for reply, task in zip(replies, tasks, strict=True)
        )
        / len(tasks),
        cost=sum(model.cost(reply.usage) for reply in replies) / reference,
        tokens_per_task=sum(reply.usage.total_tokens for reply in replies) / len(tasks),
    )


def chain_answer(reply: str) -> str:
    """What stands after the bar; nothing where there is none."""
    return CODEC.parse_answer(reply.partition("|")[2])


def _example(task: Task) -> Example:
    steps = solved_steps(task.reference_plan)
    chain = " ; ".join(f"{_as_worker(step)} = {format_answer(words.solve(step))}" for step in steps)
    return Example(_as_worker(task.query), f"{chain} | {format_answer(task.gold)}")


def _as_worker(text: str) -> str:
    return CODEC.render_query(ask(text))[0].content


def _reference_cost(tasks: Iterable[Task], largest: TinyModel) -> int:
    plans = [task.reference_plan for task in tasks]
    allocations: Sequence[tuple[str, ...]] = [(largest.name,) * len(plan.subtasks) for plan in plans]
    return execute(plans, allocations, {largest.name: largest}, MAX_ANSWER_TOKENS["words"]).cost
