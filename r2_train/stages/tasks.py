"""The tasks of a training run, and their verdicts: the same loaders and graders as in evaluation, on the other side of the split.

A generated `train` split holds nothing that its tests hold; of an official file only the development side is used, by
task id. Validation tasks are held apart from training ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.benchmarks import load_tasks, sample_tasks, split_tasks
from r2_serve.lab.evaluation.manifest import data_sha256
from r2_train.config import DataConfig

GENERATED = {"scan": "train", "words": "train"}
"""Splits that a benchmark's generator makes, which hold no test task."""


@dataclass(frozen=True)
class TaskSplit:
    """`train` and `validation` are disjoint, and neither holds a test task."""

    train: tuple[Task, ...]
    validation: tuple[Task, ...]

    @classmethod
    def load(cls, config: DataConfig) -> Self:
        """Raises: BenchmarkError; ConfigError where there are too few tasks."""
        needed = config.num_train + config.num_validation
        is_generated = config.data.partition("@")[0] == GENERATED.get(config.benchmark)
        tasks = load_tasks(config.benchmark, config.data)
        usable = tasks if is_generated else split_tasks(tasks)[0]
        if len(usable) <= config.num_validation:
            raise ConfigError(
                f"{config.data}: {len(usable)} tasks may be trained on, but {config.num_validation} are to be held apart"
            )
        drawn = sorted(
            sample_tasks(usable, needed, salt=f"train/{config.seed}"),
            key=lambda task: _shuffled(task.id, config.seed),
        )
        return cls(
            train=tuple(drawn[config.num_validation :]), validation=tuple(drawn[: config.num_validation])
        )

    @property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in (*self.train, *self.validation)}

    @property
    def sha256(self) -> str:
        return data_sha256((*self.train, *self.validation))


async def is_correct(grader: Grader, task: Task, answer: str | None) -> bool | None:
    """Whether `answer` is right; None where the grader cannot tell. No answer is wrong."""
    if answer is None:
        return False
    return (await grader.grade(task.benchmark, task.row, answer, task_id=task.id)).correct


def _shuffled(task_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"order/{seed}/{task_id}".encode()).digest()
