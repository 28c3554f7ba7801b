"""What the embedded models are trained on: tasks of a domain as prompts and targets of the compact codec.

Only train tasks are turned into examples; held-out tasks are read by `evaluate_pool`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Literal

from r2_serve.lab.domains import Task, scan, words
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import Allocation, Message, ModelCard, Plan, substitute
from r2_train.tiny.tiny_models import Example

DomainName = Literal["words", "scan"]
Styles = Literal["mixed", "reference"]
"""Plans a decomposer is trained on: a task's in every style, or its reference plan alone."""
CODEC: Codec = get_codec("compact")
MAX_SUBTASKS = 16
CLAUSE_SHARE = 0.4
"""Share of SCAN worker examples that are single clauses; the rest are whole compound commands."""
OPERATIONS = {"+": 30, "-": 28, "*": 42}
"""How often each operation is drawn for the examples that are not subtasks of train plans."""
MAX_OPERAND = 2999


def ask(text: str) -> list[Message]:
    """A conversation of one user message."""
    return [Message(role="user", content=text)]


def pool_cards(names: Sequence[str]) -> list[ModelCard]:
    """Cards for the codec, which reads names and their order alone."""
    return [
        ModelCard(name=name, codec="compact", usd_per_mtok_in=Decimal(0), usd_per_mtok_out=Decimal(0))
        for name in names
    ]


def plan_examples(tasks: Iterable[Task], styles: Styles) -> list[Example]:
    """One per task and style; `mixed` leaves the style unmarked, so a model learns to write each."""
    return [
        Example(
            CODEC.render_decompose(task.query, MAX_SUBTASKS)[0].content, CODEC.format_plan(plan, task.query)
        )
        for task in tasks
        for plan in (task.plans if styles == "mixed" else (task.reference_plan,))
    ]


def words_plan_examples(num_tasks: int, seed: int, styles: Styles) -> list[Example]:
    """Of train problems with their numbers made distinct: a plan does not tell which of two equal numbers it means, and the decomposer
    sees no values."""
    problems = map(words.with_distinct_operands, words.problems("train", num_tasks, seed))
    return plan_examples(
        (words.task(problem, random.Random(f"plans/{seed}/{i}")) for i, problem in enumerate(problems)),
        styles,
    )


def query_examples(tasks: Iterable[Task]) -> list[Example]:
    """Whole queries, answered at once."""
    return [
        Example(CODEC.render_query(ask(task.query))[0].content, format_answer(task.gold)) for task in tasks
    ]


def calculation_example(text: str) -> Example:
    """One calculation, such as "645 - 12"."""
    return Example(CODEC.render_query(ask(text))[0].content, format_answer(words.solve(text)))


def allocation_example(query: str, plan: Plan, models: Sequence[str], pool: Sequence[ModelCard]) -> Example:
    target = CODEC.format_allocation(Allocation(models=tuple(models)), pool)
    return Example(CODEC.render_allocate(query, plan, pool)[0].content, target)


def format_answer(gold: str) -> str:
    """The reply that the codec parses as `gold`: numbers as a worker sees them, actions as they are."""
    reply = CODEC.render_query(ask(gold))[0].content if gold.isdigit() else gold
    assert CODEC.parse_answer(reply) == gold
    return reply


def solved_steps(plan: Plan) -> list[str]:
    """Text of each subtask of a word problem with exact answers filled in."""
    answers: dict[int, str] = {}
    texts = []
    for subtask in plan.subtasks:
        texts.append(substitute(subtask.text, answers))
        answers[subtask.id] = words.solve(texts[-1])
    return texts


def words_worker_examples(num_examples: int, seed: int, *, max_operand: int = MAX_OPERAND) -> list[Example]:
    """Half are subtasks of train plans, half are drawn by operation and digits. None is a whole problem.

    A model too small for large operands learns none by being shown them: `max_operand` spares it those.
    """
    rng = random.Random(f"words-worker/{seed}")
    drawn = [_draw_calculation(rng, max_operand) for _ in range(num_examples // 2)]
    steps = [
        step
        for problem in words.problems("train", num_examples // 8, seed)
        for step in solved_steps(words.plan(problem))
    ]
    small = [step for step in steps if max(int(n) for n in step.split()[::2]) <= max_operand]
    return [calculation_example(text) for text in drawn + small[: num_examples // 2]]


def scan_worker_examples(seed: int) -> list[Example]:
    """Every train command, the single clauses repeated until they are `CLAUSE_SHARE` of all."""
    tasks = scan.tasks("train", seed)
    clauses = [task for task in tasks if not {"and", "after"} & set(task.query.split())]
    compounds = [task for task in tasks if {"and", "after"} & set(task.query.split())]
    num_clauses = round(len(compounds) * CLAUSE_SHARE / (1 - CLAUSE_SHARE))
    return (
        query_examples(compounds)
        + (query_examples(clauses) * (num_clauses // len(clauses) + 1))[:num_clauses]
    )


def vocabulary(examples: Iterable[Example]) -> list[str]:
    """Every word of prompts and targets, sorted."""
    return sorted(
        {word for example in examples for text in (example.prompt, example.target) for word in text.split()}
    )


def data_sha256(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.prompt} => {example.target}\n".encode())
    return digest.hexdigest()


def _draw_calculation(rng: random.Random, max_operand: int) -> str:
    """Digit counts are uniform, so that no length is rare. A difference is of the smaller from the larger."""
    op = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
    if op == "*":
        left, right = (_number(n, rng, max_operand) for n in rng.choice(((1, 1), (1, 2), (1, 2), (2, 1))))
    else:
        left, right = (_number(rng.randint(1, len(str(max_operand))), rng, max_operand) for _ in range(2))
        if op == "-" and left < right:
            left, right = right, left
    return f"{left} {op} {right}"


def _number(num_digits: int, rng: random.Random, max_operand: int) -> int:
    return rng.randint(10 ** (num_digits - 1), min(10**num_digits - 1, max_operand))
