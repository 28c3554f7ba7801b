"""Word problems of two steps with small numbers, which a chat model of 135M parameters solves at times.

    Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?   3 * 9 ; #1 + 12

They have the words of `r2_serve.lab.domains.words`: one person's number changes once, and the other's does
not. Training configs name this module: `benchmark: benchmarks.smollm2.problems:rows`, `data: "1000"`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from r2_serve.lab.domains import words
from r2_serve.lab.domains.drawing import distinct

LARGEST, LARGEST_FACTOR = 20, 9
DIFFERENCE_SHARE = 0.35


def rows(num_problems: str) -> Iterator[dict[str, str]]:
    """Rows of `qa` for that many different problems; a longer list begins with those of a shorter one."""
    for problem in distinct(_draw, random.Random("smollm2"), "train", int(num_problems)):
        task = words.task(problem, random.Random(f"smollm2/{problem.key}"))
        yield {"id": task.id, "question": task.query, "answer": task.gold, "grader": "number"}


def _draw(rng: random.Random) -> words.Problem:
    branches = [_changed(rng), words.Branch("", (rng.randint(2, LARGEST),))]
    rng.shuffle(branches)
    if rng.random() >= DIFFERENCE_SHARE:
        return words.Problem(tuple(branches), "sum")
    problem = words.Problem(tuple(branches), "difference", split=1)
    difference = words.answer(problem)
    return _draw(rng) if difference == 0 else replace(problem, is_swapped=difference < 0)


def _changed(rng: random.Random) -> words.Branch:
    op = rng.choice("*+-")
    most = LARGEST_FACTOR if op == "*" else LARGEST
    first, second = rng.randint(2, most), rng.randint(2, most)
    if op == "-" and first <= second:
        return _changed(rng)
    return words.Branch(op, (first, second))
