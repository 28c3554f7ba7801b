"""Arithmetic word problems in English whose steps form a small graph: independent branches, then a join.

    Ann has 3 bags of 9 coins. Bob has 645 coins and loses 12. How many coins do they have in all?
    ->  3 * 9 ; 645 - 12 ; #1 + #2

A `Problem` is the content (operations and operands); `Wording`s of one problem differ in names, things and
sentence forms only. A problem is held out for testing by a hash of its content, so train and test share no
problem however it is worded. Operands can be resampled under the same structure and digit lengths. Single
operations are *not* held out: 7 * 8 occurs on both sides. Every value is a positive integer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count, islice
from typing import Literal, TypeVar

from r2_serve.lab.domains import Task
from r2_serve.lab.domains import word_forms as forms
from r2_serve.types import Plan, Subtask, references

T = TypeVar("T")
Split = Literal["train", "test"]
Join = Literal["sum", "difference"]

BRANCH_OPS = {"": 16, "*": 22, "+": 14, "-": 14, "*+": 9, "*-": 9, "+-": 6, "-+": 6, "++": 4}
"""Steps of one branch, applied from left to right, and how often each sequence is drawn."""
NUM_BRANCHES = {2: 42, 3: 36, 4: 22}
NUM_DIGITS = {1: 20, 2: 45, 3: 35}
DIFFERENCE_SHARE = 0.35
SWAPPED_SHARE = 0.25
"""Of differences: how often whoever has less comes first in the text, so that who has more must be read from
the names."""
TEST_SHARE_PERCENT = 10
MAX_BRANCH_VALUE = 999
MAX_DRAWS = 200


@dataclass(frozen=True)
class Branch:
    """What one person has: `operands[0]`, then `ops[i]` applied with `operands[i + 1]`."""

    ops: str
    operands: tuple[int, ...]

    @property
    def values(self) -> list[int]:
        """The running value after each step, the start included."""
        values = [self.operands[0]]
        for op, operand in zip(self.ops, self.operands[1:], strict=True):
            values.append(_apply(op, values[-1], operand))
        return values


@dataclass(frozen=True)
class Problem:
    """Branches and how their values are joined. For a difference, the branches before `split` and those from
    it on are summed, and the smaller sum is taken from the larger: `is_swapped` where the second is the
    larger. A sum has no `split`."""

    branches: tuple[Branch, ...]
    join: Join
    split: int = 0
    is_swapped: bool = False

    @property
    def key(self) -> str:
        """The content, on which problems are held out: everything but the wording."""
        parts = [f"{branch.ops or '.'}:{','.join(map(str, branch.operands))}" for branch in self.branches]
        return f"{' '.join(parts)} {self.join}/{self.split}/{int(self.is_swapped)}"

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Branch positions summed together; for a difference the larger sum's come first."""
        everyone = tuple(range(len(self.branches)))
        if self.join == "sum":
            return (everyone,)
        groups = (everyone[: self.split], everyone[self.split :])
        return groups[::-1] if self.is_swapped else groups

    @property
    def is_held_out(self) -> bool:
        return (
            int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100 < TEST_SHARE_PERCENT
        )


def solve(text: str) -> str:
    """The exact answer of one subtask without references, such as "645 - 12". Raises: ValueError."""
    left, op, right = text.split()
    return str(_apply(op, int(left), int(right)))


def plans(problem: Problem) -> tuple[Plan, ...]:
    """Distinct plans: sums joined as a tree (the shortest critical path), then as a chain.

    One subtask per operation: branch by branch, then the sums of each group in the order of the text, then
    the difference.
    """
    return tuple(dict.fromkeys((_plan(problem, _pairwise), _plan(problem, _one_by_one))))


def plan(problem: Problem) -> Plan:
    """The plan whose sums are a tree."""
    return plans(problem)[0]


Add = Callable[[str, str, str], str]
"""Adds the step `left op right` to a plan, and gives the reference to it."""


def _plan(problem: Problem, total: Callable[[list[str], Add], str]) -> Plan:
    steps: list[str] = []

    def add(left: str, op: str, right: str) -> str:
        steps.append(f"{left} {op} {right}")
        return f"#{len(steps)}"

    ends = []
    for branch in problem.branches:
        end = str(branch.operands[0])
        for op, operand in zip(branch.ops, branch.operands[1:], strict=True):
            end = add(end, op, str(operand))
        ends.append(end)
    totals = {group: total([ends[i] for i in group], add) for group in sorted(problem.groups)}
    if problem.join == "difference":
        larger, smaller = problem.groups
        add(totals[larger], "-", totals[smaller])
    return Plan(
        subtasks=tuple(
            Subtask(id=i, text=step, depends_on=tuple(sorted(references(step))))
            for i, step in enumerate(steps, 1)
        )
    )


def _pairwise(terms: list[str], add: Add) -> str:
    """(a + b) + (c + d)"""
    while len(terms) > 1:
        pairs = [add(terms[i], "+", terms[i + 1]) for i in range(0, len(terms) - 1, 2)]
        terms = pairs + terms[len(pairs) * 2 :]
    return terms[0]


def _one_by_one(terms: list[str], add: Add) -> str:
    """((a + b) + c) + d"""
    return reduce(lambda total, term: add(total, "+", term), terms)


def answer(problem: Problem) -> int:
    sums = [sum(problem.branches[i].values[-1] for i in group) for group in problem.groups]
    return sums[0] if problem.join == "sum" else sums[0] - sums[1]


def task(problem: Problem, rng: random.Random) -> Task:
    """The problem in words drawn by `rng`."""
    digest = hashlib.sha256(problem.key.encode()).hexdigest()[:12]
    branches = [(branch.ops, branch.operands) for branch in problem.branches]
    query = forms.render(branches, problem.split, problem.is_swapped, rng)
    tree, *others = plans(problem)
    return Task(
        id=f"words-{digest}",
        query=query,
        gold=str(answer(problem)),
        reference_plan=tree,
        other_plans=tuple(others),
    )


def tasks(split: Split, num_tasks: int, seed: int = 0) -> list[Task]:
    """`num_tasks` distinct problems of a split, each in one wording; a longer list begins with a shorter
    one's tasks."""
    return [
        task(problem, random.Random(f"words/wording/{seed}/{problem.key}"))
        for problem in problems(split, num_tasks, seed)
    ]


def problems(split: Split, num_problems: int, seed: int = 0) -> list[Problem]:
    """The problems of `tasks`, without words."""
    rng = random.Random(f"words/{split}/{seed}")
    found: dict[str, Problem] = {}
    while len(found) < num_problems:
        problem = _draw(rng)
        if problem.is_held_out == (split == "test"):
            found.setdefault(problem.key, problem)
    return list(found.values())


def resamples(problem: Problem, rng: random.Random) -> Iterator[Problem]:
    """Endless problems on the same side of the split, of the same structure and digit lengths, with fresh
    operands.

    A draw that breaks a constraint is drawn again, and after `MAX_DRAWS` the problem itself is given.
    """
    while True:
        yield next((fresh for _ in range(MAX_DRAWS) if (fresh := _redraw(problem, rng)) is not None), problem)


def with_distinct_operands(problem: Problem) -> Problem:
    """The same structure over 2, 3, 4, ... in the order of the text; its values need be neither small nor
    positive."""
    numbers = count(2)
    return replace(
        problem,
        branches=tuple(
            replace(branch, operands=tuple(islice(numbers, len(branch.operands))))
            for branch in problem.branches
        ),
    )


def assert_disjoint(train: list[Task], test: list[Task]) -> None:
    """Raises: AssertionError where a problem is on both sides, or two words the same."""
    shared = {task.id for task in train} & {task.id for task in test}
    shared |= {task.query for task in train} & {task.query for task in test}
    if shared:
        raise AssertionError(f"{len(shared)} problems are in both splits, such as {min(shared)!r}")


def _apply(op: str, left: int, right: int) -> int:
    if op == "*":
        return left * right
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    raise ValueError(f"not an operation: {op!r}")


def _draw(rng: random.Random) -> Problem:
    num_branches = _weighted(NUM_BRANCHES, rng)
    branches = tuple(_draw_branch(_weighted(BRANCH_OPS, rng), rng) for _ in range(num_branches))
    if rng.random() >= DIFFERENCE_SHARE:
        return Problem(branches, "sum")
    split = {2: 1, 3: rng.choice((1, 2)), 4: 2}[num_branches]
    problem = Problem(branches, "difference", split)
    if answer(problem) == 0:
        return _draw(rng)
    is_less_first = answer(problem) < 0
    if is_less_first == (rng.random() < SWAPPED_SHARE):
        return replace(problem, is_swapped=is_less_first)
    mirrored = branches[split:] + branches[:split]
    return Problem(mirrored, "difference", num_branches - split, is_swapped=not is_less_first)


def _draw_branch(ops: str, rng: random.Random) -> Branch:
    while True:
        num_digits = [_weighted(NUM_DIGITS, rng) for _ in range(len(ops) + 1)]
        if ops.startswith("*"):
            num_digits[:2] = rng.choice(([1, 1], [1, 2], [1, 2], [2, 1]))
        branch = Branch(ops, tuple(_number(n, rng) for n in num_digits))
        if _is_valid(branch):
            return branch


def _redraw(problem: Problem, rng: random.Random) -> Problem | None:
    fresh = tuple(
        Branch(old.ops, tuple(_number(len(str(n)), rng) for n in old.operands)) for old in problem.branches
    )
    if not all(map(_is_valid, fresh)):
        return None
    redrawn = replace(problem, branches=fresh)
    return redrawn if answer(redrawn) > 0 and redrawn.is_held_out == problem.is_held_out else None


def _is_valid(branch: Branch) -> bool:
    return all(0 < value <= MAX_BRANCH_VALUE for value in branch.values)


def _number(num_digits: int, rng: random.Random) -> int:
    """Uniform among the numbers of that many digits from 2 on: no "1 bags"."""
    return rng.randint(max(2, 10 ** (num_digits - 1)), 10**num_digits - 1)


def _weighted(weights: Mapping[T, int], rng: random.Random) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
