"""The tasks of a training run and their verdicts, by the loaders and graders of the evaluation.

A generated `train` split holds no test task. Only the development side of an official file is used; the split
is by task id.
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
from r2_train.rollouts.served_pool import Rollout

GENERATED = {"everyday": "train", "scan": "train", "words": "train"}
"""The split of each generated benchmark that holds no test task."""


@dataclass(frozen=True)
class TaskSplit:
    """Disjoint tasks for training and for validation. Neither holds a test task."""

    train: tuple[Task, ...]
    validation: tuple[Task, ...]

    @classmethod
    def load(cls, config: DataConfig) -> Self:
        """Draws the tasks. Raises: BenchmarkError; ConfigError if there are too few."""
        is_generated = config.data.partition("@")[0] == GENERATED.get(config.benchmark)
        tasks = load_tasks(config.benchmark, config.data, config.grader)
        usable = tasks if is_generated else split_tasks(tasks)[0]
        n = config.num_validation
        if len(usable) <= n:
            raise ConfigError(
                f"{config.data}: too few tasks ({len(usable)}) may be trained on for "
                f"data.num_validation {n} and at least one training task: lower it, or give more data"
            )
        sample = sample_tasks(usable, config.num_train + n, salt=f"train/{config.seed}")
        drawn = sorted(sample, key=lambda task: _shuffled(task.id, config.seed))
        return cls(train=tuple(drawn[n:]), validation=tuple(drawn[:n]))

    @property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in (*self.train, *self.validation)}

    @property
    def sha256(self) -> str:
        return data_sha256((*self.train, *self.validation))


async def verdict(grader: Grader, task: Task, rollout: Rollout) -> bool | None:
    """True if the rollout's answer is right; None if calls failed or the grader cannot tell."""
    return None if rollout.has_failed else await is_correct(grader, task, rollout.answer)


async def is_correct(grader: Grader, task: Task, answer: str | None) -> bool | None:
    """True if `answer` is right; None if the grader cannot tell. A missing answer is wrong."""
    if answer is None:
        return False
    return (await grader.judge(task, answer)).correct


def _shuffled(task_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"order/{seed}/{task_id}".encode()).digest()
