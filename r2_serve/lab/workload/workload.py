"""A workload file: arrivals, tasks and an objective; and the requests that they make."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from r2_serve.config import Config
from r2_serve.lab.workload.arrivals import MAX_DURATION_S, Arrivals, TraceArrivals, arrival_times
from r2_serve.lab.workload.failures import Failure
from r2_serve.lab.workload.request import Request
from r2_serve.lab.workload.tasks import BenchmarkTasks, DrawnTask, Tasks, task_source
from r2_serve.lab.workload.trace_file import TraceRow, trace_rows
from r2_serve.serve_config.sections import read_file

EXAMPLES = Path(__file__).parent / "examples"
SCRIPTED_POOL = EXAMPLES / "pool" / "serve_config.yaml"
"""Serve config of the models that the synthetic examples name."""


class Slo(Config):
    """Service-level objective of one request. A limit of None does not count."""

    latency_s: float | None = Field(default=None, gt=0)
    """Time from the intended start to the last token."""
    ttft_s: float | None = Field(default=None, gt=0)
    """Time from the intended start to the first token."""


class Workload(Config):
    """A workload file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = 0
    duration_s: float | None = Field(default=None, gt=0, le=MAX_DURATION_S)
    """Time in which requests are sent; the run then waits for answers. Only a trace may leave it out."""
    arrivals: Arrivals
    tasks: Tasks
    slo: Slo = Slo()
    failures: tuple[Failure, ...] = ()
    """What dies in the middle of the run. Local clusters and simulations only."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.duration_s is None and not isinstance(self.arrivals, TraceArrivals):
            raise ValueError(f"duration_s is required: arrivals of kind {self.arrivals.kind!r} never end")
        return self

    def requests(self, seed: int | None = None) -> Iterator[Request]:
        """Requests in order of `start_s`, the same for the same seed; None is the workload's own seed.

        Times and tasks are drawn from separate streams, so that a change to one leaves the other.

        Raises: ConfigError, BenchmarkError if a file that it names cannot be read, or holds nothing of use.
        """
        seed = self.seed if seed is None else seed
        next_task = task_source(self.tasks, random.Random(f"{seed}/tasks"))
        for index, (start_s, task) in enumerate(self._drawn(seed, next_task)):
            yield Request(index, start_s, self.tasks.model, task.steps, task.prompt_words, task.task)

    def _drawn(self, seed: int, next_task: Callable[[], DrawnTask]) -> Iterator[tuple[float, DrawnTask]]:
        duration_s = math.inf if self.duration_s is None else self.duration_s
        if isinstance(self.arrivals, TraceArrivals):
            rows = takewhile(lambda row: row.time_s < duration_s, trace_rows(self.arrivals))
            return ((row.time_s, _as_long_as(next_task(), row)) for row in rows)
        times = arrival_times(self.arrivals, duration_s, random.Random(f"{seed}/arrivals"))
        return ((time_s, next_task()) for time_s in times)


def load_workload(path: Path) -> Workload:
    """The workload at `path`; its file names are relative to it.

    The first request is drawn, so that an unreadable data file is found before a run claims a directory.

    Raises: ConfigError listing every error; BenchmarkError.
    """
    workload = read_file(path, Workload)
    arrivals, tasks = workload.arrivals, workload.tasks
    if isinstance(arrivals, TraceArrivals):
        arrivals = arrivals.model_copy(update={"path": str(path.parent / arrivals.path)})
    if isinstance(tasks, BenchmarkTasks) and (path.parent / tasks.dataset).exists():
        tasks = tasks.model_copy(update={"dataset": str(path.parent / tasks.dataset)})
    workload = workload.model_copy(update={"arrivals": arrivals, "tasks": tasks})
    next(workload.requests(), None)
    return workload


def _as_long_as(task: DrawnTask, row: TraceRow) -> DrawnTask:
    """A synthetic task with the lengths of the trace's prompt and reply; a benchmark's text stays."""
    if task.steps is None:
        return task
    *others, last = task.steps
    steps = (*others, replace(last, reply_tokens=row.reply_tokens))
    return replace(task, steps=steps, prompt_words=row.prompt_tokens)
