"""Everyday problems of several steps in English, whose steps need different skills.

    Ann buys 3 boxes of 24 pears, then loses 12. Bob scores 34, 71 and 18 and keeps the best. Write "garden"
    backwards, then shift it by 3. How many more does Bob have than Ann?
    ->  3 * 24 ; #1 - 12 ; max 34 , 71 , 18 ; reverse "garden" ; shift 3 "#4" ; #3 - #2  |  #5, #6

A `Problem` is the content: threads of steps, and how some of them are joined. Two wordings of one problem
differ only in names, things and sentence forms. A hash of the content decides which problems are held out, so
train and test share no problem in any wording. `everyday_steps` has the kinds of step and their answers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from r2_serve.lab.domains import Task, solve_plan
from r2_serve.lab.domains import everyday_forms as forms
from r2_serve.lab.domains import everyday_steps as steps
from r2_serve.lab.domains.drawing import Split, distinct
from r2_serve.lab.domains.everyday_forms import Literal as Operand
from r2_serve.types import Plan, Subtask, references

_Add = Callable[[str], str]
TEST_SHARE_PERCENT = 10
MAX_STEPS = 10
MAX_THREADS = 5
THREADS: Mapping[str, int] = {
    "+": 3, "-": 3, "*": 6, "/": 7, "convert": 9, "max": 10, "min": 9,
    "day": 12, "reverse": 10, "shift": 11, "replace": 11, "sort": 10,
}  # fmt: skip
"""The first kind of a thread, and its weight in the draw."""
NEXTS: Mapping[str, int] = {"+": 6, "-": 6, "*": 6, "/": 6, "convert": 9, "weekday": 10}
"""The kinds that go on from a number, and their weights where they are possible."""
JOIN_SHARE = 0.55
WEEKDAY = "weekday"
"""A `day` step that counts days by the number before it."""


@dataclass(frozen=True)
class Step:
    """A kind of step with its literals in the order of the English. The result before it is no literal."""

    kind: str
    literals: tuple[Operand, ...] = ()

    def text(self, before: str | None) -> str:
        """The step as a subtask; `before` refers to the result that it goes on from."""
        kind, operands = self.kind, list(self.literals)
        if (kind == "day" and before is None) or kind == WEEKDAY:
            return f"day {operands[0]} {before or operands[1]}"
        if before is not None:
            operands.insert({"shift": 1, "replace": 2}.get(kind, 0), before)
        if kind in ("+", "-", "*", "/"):
            return f"{operands[0]} {kind} {operands[1]}"
        if kind in steps.SKILLS["text"]:
            written = [str(o) if isinstance(o, int) else f'"{o}"' for o in operands]
            return " ".join((kind, *written))
        listed = [" , ".join(map(str, o)) if isinstance(o, tuple) else str(o) for o in operands]
        return " ".join((kind, *listed))


@dataclass(frozen=True)
class Thread:
    """Steps that go on from each other."""

    steps: tuple[Step, ...]

    @property
    def is_number(self) -> bool:
        """Whether it ends in a number of a person, which can be joined with others."""
        return self.steps[0].kind in NUMBER_STARTS and self.steps[-1].kind != WEEKDAY

    @property
    def has_person(self) -> bool:
        return self.steps[0].kind in NUMBER_STARTS


NUMBER_STARTS = frozenset({"+", "-", "*", "/", "convert", "max", "min"})


@dataclass(frozen=True)
class Problem:
    """Threads, and the operation that joins the results of some of them: `+`, `-` or `max`."""

    threads: tuple[Thread, ...]
    op: str = ""
    joined: tuple[int, ...] = ()
    """Positions of the threads that are joined, in the order of the question."""

    @property
    def key(self) -> str:
        """The content without the wording. Its hash decides whether the problem is held out."""
        parts = [" > ".join(f"{s.kind}:{s.literals}" for s in thread.steps) for thread in self.threads]
        return f"{' / '.join(parts)} {self.op}{self.joined}"

    @property
    def num_steps(self) -> int:
        num_joins = min(1, len(self.joined)) if self.op == "max" else max(0, len(self.joined) - 1)
        return sum(len(thread.steps) for thread in self.threads) + num_joins

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < TEST_SHARE_PERCENT


def plan(problem: Problem) -> Plan:
    """A step for each operation: thread by thread, then the join. Several results make an answer template."""
    texts: list[str] = []

    def add(text: str) -> str:
        texts.append(text)
        return f"#{len(texts)}"

    ends = []
    for thread in problem.threads:
        end: str | None = None
        for step in thread.steps:
            end = add(step.text(end))
        ends.append(str(end))
    results = [end for i, end in enumerate(ends) if i not in problem.joined]
    if problem.op:
        results.append(_add_join(problem.op, [ends[i] for i in problem.joined], add))
    subtasks = (
        Subtask(id=i, text=text, depends_on=tuple(sorted(references(text))))
        for i, text in enumerate(texts, 1)
    )
    return Plan(subtasks=tuple(subtasks), answer=", ".join(results) if len(results) > 1 else None)


def _add_join(op: str, ends: Sequence[str], add: _Add) -> str:
    if op == "max":
        return add(f"max {' , '.join(ends)}")
    total = ends[0]
    for end in ends[1:]:
        total = add(f"{total} {op} {end}")
    return total


def query(problem: Problem, rng: random.Random) -> str:
    """The problem in words drawn by `rng`."""
    names = rng.sample(forms.NAMES, len(problem.threads))
    sentences = []
    for i, (thread, name) in enumerate(zip(problem.threads, names, strict=True)):
        words = {"name": name, "thing": rng.choice(forms.THINGS), "box": rng.choice(forms.BOXES)}
        first, *others = thread.steps
        text = forms.start(first.kind, first.literals, words, rng)
        text += "".join(forms.go_on(step.kind, step.literals, rng) for step in others)
        sentences.append(text if text.endswith("?") else f"{text}.")
        if thread.is_number and i not in problem.joined:
            sentences.append(forms.question(name, rng))
    if problem.op:
        sentences.append(forms.joined(problem.op, [names[i] for i in problem.joined], rng))
    return " ".join(sentences)


def task(problem: Problem, rng: random.Random) -> Task:
    """The problem as a task, in words drawn by `rng`."""
    made = plan(problem)
    digest = hashlib.sha256(problem.key.encode()).hexdigest()[:12]
    gold = solve_plan(made, steps.solve)
    return Task(id=f"everyday-{digest}", query=query(problem, rng), gold=gold, reference_plan=made)


def tasks(split: Split, num_tasks: int, seed: int = 0) -> list[Task]:
    """`num_tasks` distinct problems of a split, each in one wording.

    A longer list begins with the tasks of a shorter one.
    """
    return [
        task(problem, random.Random(f"everyday/wording/{seed}/{problem.key}"))
        for problem in problems(split, num_tasks, seed)
    ]


def problems(split: Split, num_problems: int, seed: int = 0) -> list[Problem]:
    """The problems of `tasks`, without words."""
    return distinct(_draw, random.Random(f"everyday/{split}/{seed}"), split, num_problems)


def with_distinct_operands(problem: Problem) -> Problem:
    """The same structure with a literal of its own in each place, so that a plan says which one it means."""
    numbers = count(2)

    def distinct(literal: Operand) -> Operand:
        if isinstance(literal, int):
            return next(numbers)
        if isinstance(literal, tuple):
            return tuple(next(numbers) for _ in literal)
        if literal in steps.DAYS or literal in steps.UNITS:
            return literal
        n = next(numbers)
        return "".join(chr(97 + n // 26**i % 26) for i in (2, 1, 0))

    def renewed(thread: Thread) -> Thread:
        return Thread(tuple(Step(s.kind, tuple(map(distinct, s.literals))) for s in thread.steps))

    return replace(problem, threads=tuple(map(renewed, problem.threads)))


# -- drawing -------------------------------------------------------------------------------------------------


def _draw(rng: random.Random) -> Problem:
    """A problem of 2 to `MAX_STEPS` steps, all numbers of steps about equally likely."""
    left = rng.randint(2, MAX_STEPS)
    has_join = left > 2 and rng.random() < JOIN_SHARE
    left -= has_join
    threads: list[Thread] = []
    while left and len(threads) < MAX_THREADS:
        thread = _draw_thread(rng, min(left, 3), is_number=has_join and len(threads) < 2)
        threads.append(thread)
        left -= len(thread.steps)
    rng.shuffle(threads)
    problem = Problem(tuple(threads))
    problem = _with_join(problem, rng) if has_join else problem
    return problem if 2 <= problem.num_steps <= MAX_STEPS else _draw(rng)


def _with_join(problem: Problem, rng: random.Random) -> Problem:
    """Joins two or three threads that end in numbers, where an operation suits their values."""
    able = [i for i, thread in enumerate(problem.threads) if thread.is_number]
    if len(able) < 2:
        return problem
    chosen = rng.sample(able, min(len(able), rng.choice((2, 2, 3))))
    values = {i: int(_value(problem.threads[i].steps)) for i in chosen}
    options = {
        "+": sum(values.values()) <= steps.MAX_NUMBER,
        "-": len(chosen) == 2 and values[chosen[0]] > values[chosen[1]],
        "max": max(values.values()) <= steps.MAX_SMALL,
    }
    fitting = [op for op, fits in options.items() if fits]
    return replace(problem, op=rng.choice(fitting), joined=tuple(chosen)) if fitting else problem


def _draw_thread(rng: random.Random, longest: int, *, is_number: bool) -> Thread:
    kinds = {k: w for k, w in THREADS.items() if k in NUMBER_STARTS or not is_number}
    kind = _weighted(kinds, rng)
    length = rng.choice((1, 1, 2, 2, 3)) if longest > 2 else rng.randint(1, longest)
    found = [_first(kind, rng)]
    while len(found) < length and (step := _next(found, rng, is_number)) is not None:
        found.append(step)
    return Thread(tuple(found))


def _first(kind: str, rng: random.Random) -> Step:
    """A step with literals, from the text of a drawn one."""
    words = steps.draw(kind, rng).replace('"', "").split()
    if kind in ("+", "-", "*", "/"):
        return Step(kind, (int(words[0]), int(words[2])))
    if kind in ("max", "min", "sort"):
        numbers = tuple(int(word) for word in words[1:] if word != ",")
        return Step(kind, (numbers,)) if len(numbers) > 2 else _first(kind, rng)
    return Step(kind, tuple(int(word) if word.isdigit() else word for word in words[1:]))


def _next(found: Sequence[Step], rng: random.Random, is_number: bool) -> Step | None:
    """A step that goes on from the last one; None if none is possible."""
    kind = found[-1].kind
    if kind in steps.SKILLS["text"]:
        return _next_text(_value(found), rng)
    if kind == "day":
        return Step("day", (steps.number(rng, rng.choice((1, 2, 2))),))
    if kind in ("sort", WEEKDAY):
        return None
    return _next_number(int(_value(found)), rng, is_number)


def _next_text(text: str, rng: random.Random) -> Step:
    kind = rng.choice(steps.SKILLS["text"])
    if kind == "replace":
        old = rng.choice(text)
        return Step(kind, (old, rng.choice(steps.LETTERS.replace(old, ""))))
    return Step(kind, (rng.randint(1, steps.MAX_SHIFT),) if kind == "shift" else ())


def _next_number(value: int, rng: random.Random, is_number: bool) -> Step | None:
    divisors = [d for d in range(2, 10) if value % d == 0 and 2 <= value // d <= steps.MAX_SMALL]
    is_small = 2 <= value <= steps.MAX_SMALL
    possible = {
        "+": value <= steps.MAX_NUMBER // 2, "-": value > 4, "*": is_small, "/": bool(divisors),
        "convert": is_small, WEEKDAY: is_small and not is_number,
    }  # fmt: skip
    kind = _weighted({k: w for k, w in NEXTS.items() if possible[k]}, rng)
    match kind:
        case "+":
            return Step(kind, (min(steps.number(rng, rng.randint(1, 4)), steps.MAX_NUMBER - value),))
        case "-":
            return Step(kind, (rng.randint(2, min(value - 2, 10 ** rng.randint(1, 4))),))
        case "*":
            return Step(kind, (steps.number(rng, 1),))
        case "/":
            return Step(kind, (rng.choice(divisors),))
        case "convert":
            return Step(kind, (rng.choice(list(steps.UNITS)),))
        case _:
            return Step(kind, (rng.choice(steps.DAYS),))


def _value(found: Sequence[Step]) -> str:
    """The result of the steps of one thread."""
    value: str | None = None
    for step in found:
        value = steps.solve(step.text(value))
    return str(value)


def _weighted(weights: Mapping[str, int], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
