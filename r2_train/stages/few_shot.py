"""`r2-train prompts`: writes examples from a run's own training tasks into a file of prompts.

The tasks are of the development side, so no test task becomes an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from r2_serve.config.prompts import PromptExample, Prompts
from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.jsonl import read_jsonl
from r2_train.run import TrainingRun
from r2_train.stages.search import SCHEMES, PlannedTask, SearchedPlan


def write_prompts(run: TrainingRun, path: Path, num_examples: int) -> Prompts:
    """Adds examples to the texts of the virtual model, and writes them. Raises: ConfigError."""
    if path.exists():
        raise ConfigError(f"{path} exists: an adapter may have been trained with it, so choose another name")
    rows = read_jsonl(run.directory / "search" / SCHEMES, SearchedPlan)
    models = {row.key: row.models for row in rows}
    examples = tuple(
        PromptExample(query=item.task.query, plan=item.plan, models=models.get(item.key))
        for item in diverse(run.kept_plans()[0], num_examples)
    )
    prompts = (run.described.virtual.prompts or Prompts()).model_copy(update={"examples": examples})
    fields = prompts.model_dump(mode="json", exclude_none=True)
    write_whole(path, yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100))
    return prompts


def diverse(items: Sequence[PlannedTask], number: int) -> list[PlannedTask]:
    """`number` items, of as many different numbers of steps as there are, the shortest question of each."""
    left = sorted(items, key=lambda item: len(item.task.query))
    chosen: list[PlannedTask] = []
    while left and len(chosen) < number:
        seen = {len(item.plan.subtasks) for item in chosen}
        fresh = (item for item in left if len(item.plan.subtasks) not in seen)
        item = next(fresh, left[0])
        left.remove(item)
        chosen.append(item)
    return chosen
