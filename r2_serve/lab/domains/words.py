"""Arithmetic word problems in English whose steps form a small graph: independent branches, then a join.

    Ann has 3 bags of 9 coins. Bob has 645 coins and loses 12. How many coins do they have in all?
    ->  3 * 9 ; 645 - 12 ; #1 + #2

A `Problem` is the content: operations and operands. Two wordings of one problem differ only in names, things
and sentence forms. A hash of the content decides which problems are held out for testing, so train and test
share no problem in any wording. Operands can be drawn again for the same structure and digit lengths. Single
operations are *not* held out: 7 * 8 occurs in both splits. Every value is a positive integer.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count, islice
from typing import Literal, TypeVar

from r2_serve.lab.domains import Task
from r2_serve.lab.domains import word_forms as forms
from r2_serve.lab.domains.drawing import Split, distinct
from r2_serve.types import Plan, Subtask, references

T = TypeVar("T")
Join = Literal["sum", "difference"]

BRANCH_OPS = {"": 16, "*": 22, "+": 14, "-": 14, "*+": 9, "*-": 9, "+-": 6, "-+": 6, "++": 4}
"""Sequences of steps of one branch, applied from left to right, and the weight of each in the draw."""
NUM_BRANCHES = {2: 42, 3: 36, 4: 22}
NUM_DIGITS = {1: 20, 2: 45, 3: 35}
DIFFERENCE_SHARE = 0.35
SWAPPED_SHARE = 0.25
"""Share of the differences in which the smaller total comes first in the text. There the names must be read
to know which total is larger."""
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
    """Branches, and how their values are joined.

    For a difference, the branches before `split` are summed, and so are the others; the smaller sum is taken
    from the larger. `is_swapped` says that the second sum is larger. A sum has no `split`.
    """

    branches: tuple[Branch, ...]
    join: Join
    split: int = 0
    is_swapped: bool = False

    @property
    def key(self) -> str:
        """The content without the wording. Its hash decides whether the problem is held out."""
        parts = [f"{branch.ops or '.'}:{','.join(map(str, branch.operands))}" for branch in self.branches]
        return f"{' '.join(parts)} {self.join}/{self.split}/{int(self.is_swapped)}"

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the branches that are summed together. For a difference the larger sum comes first."""
        positions = tuple(range(len(self.branches)))
        if self.join == "sum":
            return (positions,)
        groups = (positions[: self.split], positions[self.split :])
        return groups[::-1] if self.is_swapped else groups

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < TEST_SHARE_PERCENT


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
    subtasks = (
        Subtask(id=i, text=step, depends_on=tuple(sorted(references(step))))
        for i, step in enumerate(steps, 1)
    )
    return Plan(subtasks=tuple(subtasks))


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
    """The exact value, which is positive for a drawn problem."""
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
    """`num_tasks` distinct problems of a split, each in one wording.

    A longer list begins with the tasks of a shorter one.
    """
    return [
        task(problem, random.Random(f"words/wording/{seed}/{problem.key}"))
        for problem in problems(split, num_tasks, seed)
    ]


def problems(split: Split, num_problems: int, seed: int = 0) -> list[Problem]:
    """The problems of `tasks`, without words."""
    return distinct(_draw, random.Random(f"words/{split}/{seed}"), split, num_problems)


def resamples(problem: Problem, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of the same split, structure and digit lengths, with fresh operands.

    A draw that breaks a constraint is drawn again. After `MAX_DRAWS` draws the problem itself is given.
    """
    while True:
        yield next((fresh for _ in range(MAX_DRAWS) if (fresh := _redraw(problem, rng)) is not None), problem)


def with_distinct_operands(problem: Problem) -> Problem:
    """The same structure with the operands 2, 3, 4, ... in the order of the text.

    Values of branches may be large, and they may be negative.
    """
    numbers = count(2)
    branches = (Branch(old.ops, tuple(islice(numbers, len(old.operands)))) for old in problem.branches)
    return replace(problem, branches=tuple(branches))


def assert_disjoint(train: list[Task], test: list[Task]) -> None:
    """Raises: AssertionError if a problem or a text is in both splits."""
    shared = {task.id for task in train} & {task.id for task in test}
    shared |= {task.query for task in train} & {task.query for task in test}
    if shared:
        raise AssertionError(f"{len(shared)} problems are in both splits, such as {min(shared)!r}")


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "*": operator.mul,
    "+": operator.add,
    "-": operator.sub,
}


def _apply(op: str, left: int, right: int) -> int:
    if op not in _OPERATIONS:
        raise ValueError(f"not an operation: {op!r}; expected one of {', '.join(_OPERATIONS)}")
    return _OPERATIONS[op](left, right)


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
    """A number of that many digits, drawn uniformly. It is at least 2: "1 bags" is no English."""
    return rng.randint(max(2, 10 ** (num_digits - 1)), 10**num_digits - 1)


def _weighted(weights: Mapping[T, int], rng: random.Random) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
