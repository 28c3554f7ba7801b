"""A workload: arrivals, tasks and an objective; and the requests that they come to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Self

from pydantic import Field, model_validator

from r2_serve.config import Config
from r2_serve.lab.workload.arrivals import MAX_DURATION_S, Arrivals, TraceArrivals, arrival_times
from r2_serve.lab.workload.request import Request
from r2_serve.lab.workload.tasks import DrawnTask, SyntheticTasks, Tasks, task_source
from r2_serve.lab.workload.trace_file import TraceRow, trace_rows


class Slo(Config):
    """Service-level objective of one request. What is None does not count; without any, each request that is answered is good."""

    latency_s: float | None = Field(default=None, gt=0)
    """From when it was to be sent to its last token."""
    ttft_s: float | None = Field(default=None, gt=0)
    """From when it was to be sent to its first token."""


class Workload(Config):
    """See the module's text."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = 0
    duration_s: float | None = Field(default=None, gt=0, le=MAX_DURATION_S)
    """Requests are sent before that; the run goes on until the last answer. Required but for a trace."""
    arrivals: Arrivals
    tasks: Tasks
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.duration_s is None and not isinstance(self.arrivals, TraceArrivals):
            raise ValueError(
                f"duration_s is required with arrivals of kind {self.arrivals.kind!r}, which never end by themselves"
            )
        return self

    def requests(self, seed: int | None = None) -> Iterator[Request]:
        """In order of `start_s`, the same for the same seed (None: the workload's own); times and tasks are drawn from streams
        of their own, so that a change to one leaves the other.

        Raises: ConfigError, BenchmarkError where a file that it names cannot be read, or holds nothing of use.
        """
        seed = self.seed if seed is None else seed
        next_task = task_source(self.tasks, random.Random(f"{seed}/tasks"))
        if isinstance(self.arrivals, TraceArrivals):
            rows = trace_rows(self.arrivals)
            if (duration_s := self.duration_s) is not None:
                rows = takewhile(lambda row: row.time_s < duration_s, rows)
            drawn = (
                (
                    row.time_s,
                    _as_long_as(next_task(), row, is_synthetic=isinstance(self.tasks, SyntheticTasks)),
                )
                for row in rows
            )
        else:
            assert self.duration_s is not None, "checked on construction"
            times = arrival_times(self.arrivals, self.duration_s, random.Random(f"{seed}/arrivals"))
            drawn = ((time_s, next_task()) for time_s in times)
        for index, (start_s, task) in enumerate(drawn):
            yield Request(index, start_s, self.tasks.model, task.steps, task.prompt_words, task.task)


def _as_long_as(task: DrawnTask, row: TraceRow, *, is_synthetic: bool) -> DrawnTask:
    """A synthetic task with the trace's prompt, whose last subtask writes the trace's reply. A benchmark's text stays as it is."""
    if not is_synthetic or task.steps is None:
        return task
    *others, last = task.steps
    return replace(
        task, steps=(*others, replace(last, reply_tokens=row.reply_tokens)), prompt_words=row.prompt_tokens
    )
