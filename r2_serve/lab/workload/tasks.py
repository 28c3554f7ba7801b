"""Contents of requests: synthetic tasks, which bring their own plan and allocation, or those of a benchmark,
which are graded.

A synthetic task's text holds its plan and its allocation as JSON. Scripted models read them (`{json:plan}`,
`{json:allocation}`, `{words}`: `r2_serve.engines.scripted`), so the router's real stages run with costs that
the workload chose. Other models may get the same text and plan as they like.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from r2_serve.config import Config
from r2_serve.lab.workload.request import Step

if TYPE_CHECKING:
    from r2_serve.grading.rows import Task


def _as_range(value: object) -> object:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"[{bounds[0]}, {bounds[1]}] is no range: the lower bound comes first")
    return bounds


Size = Annotated[int, Field(ge=1, le=1_000_000)]
Range = Annotated[tuple[Size, Size], BeforeValidator(_as_range), AfterValidator(_is_ordered)]
"""A number, or [low, high], between which all numbers are equally likely."""
Count = Annotated[int, Field(ge=0)]
Padding = Annotated[tuple[Count, Count], BeforeValidator(_as_range), AfterValidator(_is_ordered)]


class Wave(Config):
    """Subtasks that run at the same time, once all subtasks of the wave before are answered."""

    model: str
    """The pool model that gets its subtasks."""
    count: Range = (1, 1)
    """Number of subtasks."""
    words: Range
    """Length of each reply."""


class Shape(Config):
    """One form of plan."""

    weight: float = Field(default=1.0, gt=0)
    """Frequency relative to the other shapes."""
    waves: tuple[Wave, ...] = Field(min_length=1)


class SyntheticTasks(Config):
    """Invented tasks whose costs are known."""

    kind: Literal["synthetic"]
    model: str = "r2"
    """A virtual model, or a pool model, which then answers alone with the last subtask's words."""
    shapes: tuple[Shape, ...] = Field(min_length=1)
    prompt_words: Padding = (0, 0)
    """Number of words that the text is padded to: a number or [low, high]."""


class BenchmarkTasks(Config):
    """Tasks of a benchmark in random order, repeated after the last; every answer is graded."""

    kind: Literal["benchmark"]
    model: str = "r2"
    name: str
    """A benchmark of `r2-serve eval run`: math, gsm8k, csqa, ..., qa for rows of your own, or MODULE:NAME."""
    grader: str | None = None
    """A grader in place of the benchmark's own, as in `r2-serve eval run --grader`."""
    dataset: str
    """Official file or directory, `hf:NAME` or a generated split, as in `r2-serve eval run --data`."""
    limit: int | None = Field(default=None, ge=1)
    """Number of tasks, chosen by id; None takes all."""


Tasks = Annotated[SyntheticTasks | BenchmarkTasks, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class DrawnTask:
    """The content of one request."""

    steps: tuple[Step, ...] | None = None
    prompt_words: int = 0
    task: Task | None = None


def task_source(tasks: SyntheticTasks | BenchmarkTasks, draw: random.Random) -> Callable[[], DrawnTask]:
    """A function that draws the next task. Raises: ConfigError, BenchmarkError for unreadable data."""
    if isinstance(tasks, BenchmarkTasks):
        return _benchmark_source(load_benchmark(tasks), draw)
    shapes, limits = tasks.shapes, list(accumulate(shape.weight for shape in tasks.shapes))

    def next_task() -> DrawnTask:
        shape = draw.choices(shapes, cum_weights=limits)[0] if len(shapes) > 1 else shapes[0]
        return DrawnTask(_steps(shape, draw), _between(tasks.prompt_words, draw))

    return next_task


def load_benchmark(tasks: BenchmarkTasks) -> tuple[Task, ...]:
    """The tasks to draw from. Raises: BenchmarkError; ConfigError for an import path that leads nowhere."""
    from r2_serve.lab.evaluation.benchmarks import load_tasks, sample_tasks

    loaded = load_tasks(tasks.name, tasks.dataset, tasks.grader)
    return loaded if tasks.limit is None else sample_tasks(loaded, tasks.limit)


def _benchmark_source(tasks: Sequence[Task], draw: random.Random) -> Callable[[], DrawnTask]:
    order: list[Task] = []

    def next_task() -> DrawnTask:
        if not order:
            order.extend(draw.sample(tasks, len(tasks)))
        return DrawnTask(task=order.pop())

    return next_task


def _steps(shape: Shape, draw: random.Random) -> tuple[Step, ...]:
    steps: list[Step] = []
    before: tuple[int, ...] = ()
    for wave in shape.waves:
        count = _between(wave.count, draw)
        first = len(steps) + 1
        steps += [Step(wave.model, _between(wave.words, draw), before) for _ in range(count)]
        before = tuple(range(first, first + count))
    return tuple(steps)


def _between(bounds: tuple[int, int], draw: random.Random) -> int:
    return bounds[0] if bounds[0] == bounds[1] else draw.randint(*bounds)
