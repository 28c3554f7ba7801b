"""The training data of the embedded models: tasks as prompts and targets of the compact codec.

Only training tasks become examples; `evaluate_pool` reads the held-out ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal

from r2_serve.lab.domains import Task, everyday, everyday_steps, scan, words
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import Allocation, Message, ModelCard, Plan, substitute
from r2_train.tiny.tiny_models import TextExample

DomainName = Literal["everyday", "words", "scan"]
Styles = Literal["mixed", "reference"]
"""The plans that a decomposer is trained on: all of a task's, or its reference plan alone."""
CODEC: Codec = get_codec("compact")
CHAINS: Codec = get_codec("compact-chains")
"""The dialect of everyday decomposers."""
MAX_SUBTASKS = 16
CLAUSE_SHARE = 0.4
"""Share of SCAN worker examples that are single clauses; the others are whole compound commands."""
OPERATIONS = {"+": 30, "-": 28, "*": 42}
"""Weights of the operations in drawn calculations."""
MAX_OPERAND = 2999


def ask(text: str) -> list[Message]:
    """A conversation of one user message."""
    return [Message(role="user", content=text)]


def pool_cards(names: Sequence[str]) -> list[ModelCard]:
    """Cards without prices: the codec reads only their names and order."""
    free = Decimal(0)
    return [ModelCard(name=n, codec="compact", usd_per_mtok_in=free, usd_per_mtok_out=free) for n in names]


def worker_prompt(text: str) -> str:
    """A query in the notation of the workers."""
    return CODEC.render_query(ask(text))[0].text


def format_answer(gold: str) -> str:
    """The reply that the codec reads as `gold`: numbers in the workers' notation, actions unchanged."""
    reply = worker_prompt(gold) if gold.isdigit() else gold
    assert CODEC.parse_answer(reply) == gold
    return reply


def query_example(query: str, gold: str) -> TextExample:
    """A query that a worker answers at once."""
    return TextExample(worker_prompt(query), format_answer(gold))


def query_examples(tasks: Iterable[Task]) -> list[TextExample]:
    return [query_example(task.query, task.gold) for task in tasks]


def calculation_example(text: str) -> TextExample:
    """One calculation, such as "645 - 12"."""
    return query_example(text, words.solve(text))


def plan_examples(tasks: Iterable[Task], styles: Styles) -> list[TextExample]:
    """One example per task and plan. No style is marked, so that a model learns to write each of them."""
    return [
        plan_example(task.query, plan)
        for task in tasks
        for plan in (task.plans if styles == "mixed" else (task.reference_plan,))
    ]


def plan_example(query: str, plan: Plan, codec: Codec = CODEC) -> TextExample:
    prompt = codec.render_decompose(ask(query), MAX_SUBTASKS)[0].text
    return TextExample(prompt, codec.format_plan(plan, query))


def words_plan_examples(num_tasks: int, seed: int, styles: Styles) -> list[TextExample]:
    """Plans of training problems whose numbers are made distinct.

    The decomposer sees no values, so a plan could not say which of two equal numbers it means.
    """
    problems = enumerate(map(words.with_distinct_operands, words.problems("train", num_tasks, seed)))
    tasks = (words.task(problem, random.Random(f"plans/{seed}/{i}")) for i, problem in problems)
    return plan_examples(tasks, styles)


def everyday_plan_examples(num_tasks: int, seed: int) -> list[TextExample]:
    """The plans of everyday training problems whose literals are made distinct, as for `words`."""
    problems = enumerate(map(everyday.with_distinct_operands, everyday.problems("train", num_tasks, seed)))
    return [
        plan_example(
            everyday.query(problem, random.Random(f"plans/{seed}/{i}")), everyday.plan(problem), CHAINS
        )
        for i, problem in problems
    ]


def allocation_example(
    query: str, plan: Plan, models: Sequence[str], pool: Sequence[ModelCard]
) -> TextExample:
    target = CODEC.format_allocation(Allocation(models=tuple(models)), plan, pool)
    return TextExample(CODEC.render_allocate(ask(query), plan, pool)[0].text, target)


def solved_steps(plan: Plan) -> list[str]:
    """The subtasks of a word problem, with exact answers filled in."""
    answers: dict[int, str] = {}
    texts = []
    for subtask in plan.subtasks:
        texts.append(substitute(subtask.text, answers))
        answers[subtask.id] = words.solve(texts[-1])
    return texts


def words_worker_examples(
    num_examples: int, seed: int, *, max_operand: int = MAX_OPERAND
) -> list[TextExample]:
    """Single calculations: half are subtasks of training plans, half are drawn by operation and digits.

    `max_operand` leaves out what a model is too small for; it would learn nothing from it.
    """
    rng = random.Random(f"words-worker/{seed}")
    drawn = [_draw_calculation(rng, max_operand) for _ in range(num_examples // 2)]
    problems = words.problems("train", num_examples // 8, seed)
    steps = [step for problem in problems for step in solved_steps(words.plan(problem))]
    small = [step for step in steps if max(int(n) for n in step.split()[::2]) <= max_operand]
    return [calculation_example(text) for text in drawn + small[: num_examples // 2]]


def scan_worker_examples(seed: int) -> list[TextExample]:
    """Every training command. Single clauses are repeated until they are `CLAUSE_SHARE` of all."""
    tasks = scan.tasks("train", seed)
    clauses = [task for task in tasks if not {"and", "after"} & set(task.query.split())]
    compounds = [task for task in tasks if {"and", "after"} & set(task.query.split())]
    num_clauses = round(len(compounds) * CLAUSE_SHARE / (1 - CLAUSE_SHARE))
    repeated = query_examples(clauses) * (num_clauses // len(clauses) + 1)
    return query_examples(compounds) + repeated[:num_clauses]


def everyday_worker_examples(num_examples: int, seed: int, weights: Mapping[str, float]) -> list[TextExample]:
    """Steps of the given kinds, drawn with these weights. No held-out step is among them."""
    rng = random.Random(f"everyday-worker/{seed}")
    kinds = rng.choices(list(weights), list(weights.values()), k=num_examples)
    return [everyday_step_example(text) for text in (_training_step(kind, rng) for kind in kinds)]


def everyday_step_example(text: str) -> TextExample:
    """One step of an everyday problem, with its exact answer as workers write it."""
    gold = everyday_steps.solve(text)
    is_text = everyday_steps.kind_of(text) in everyday_steps.SKILLS["text"]
    return TextExample(worker_prompt(text), " ".join(gold) if is_text else worker_prompt(gold))


def everyday_worker_vocabulary() -> list[str]:
    """The words of all everyday workers, so that equal shapes have equal sizes."""
    rng = random.Random(0)
    steps = (everyday_steps.draw(kind, rng) for kind in everyday_steps.KINDS for _ in range(2000))
    return vocabulary(everyday_step_example(text) for text in steps)


def _training_step(kind: str, rng: random.Random) -> str:
    while everyday_steps.is_held_out(text := everyday_steps.draw(kind, rng)):
        pass
    return text


def vocabulary(examples: Iterable[TextExample]) -> list[str]:
    """All words of prompts and targets, sorted."""
    return sorted({word for example in examples for word in f"{example.prompt} {example.target}".split()})


def examples_sha256(examples: Iterable[TextExample]) -> str:
    text = "".join(f"{example.prompt} => {example.target}\n" for example in examples)
    return hashlib.sha256(text.encode()).hexdigest()


def _draw_calculation(rng: random.Random, max_operand: int) -> str:
    """A calculation with uniform numbers of digits, so that no length is rare. No difference is negative."""
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
