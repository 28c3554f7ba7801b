"""What the two modules are trained on: prompts and targets by the very codecs that serve.

One `Example` is one exchange: for SFT with its target, for GRPO with what the reward must know (the task, and the plan to
allocate). Rows are JSONL files in the run directory, so that a stage in another process reads what this one wrote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from r2_serve.config import LimitsConfig
from r2_serve.files import read_lines, whole_file
from r2_serve.prompts import Codec
from r2_serve.types import Allocation, Message, ModelCard, Plan, Record


class Example(Record):
    """`target` is None where a reward takes its place."""

    task_id: str
    query: str
    messages: tuple[Message, ...]
    target: str | None = None
    plan: Plan | None = None
    """Of an allocator's example: what is to be allocated."""


def plan_example(
    codec: Codec, limits: LimitsConfig, task_id: str, query: str, plan: Plan | None = None
) -> Example:
    """A decomposer's: query in, plan out."""
    messages = tuple(codec.render_decompose(query, limits.max_subtasks))
    target = None if plan is None else codec.format_plan(plan, query)
    return Example(task_id=task_id, query=query, messages=messages, target=target)


def allocation_example(
    codec: Codec,
    cards: Sequence[ModelCard],
    task_id: str,
    query: str,
    plan: Plan,
    models: Sequence[str] | None = None,
) -> Example:
    """An allocator's: plan in, models out."""
    messages = tuple(codec.render_allocate(query, plan, cards))
    target = None if models is None else codec.format_allocation(Allocation(models=tuple(models)), cards)
    return Example(task_id=task_id, query=query, messages=messages, target=target, plan=plan)


def write_examples(path: Path, examples: Iterable[Example]) -> Path:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.writelines(f"{example.model_dump_json(exclude_defaults=True)}\n" for example in examples)
    return path


def read_examples(path: Path) -> list[Example]:
    return [Example.model_validate_json(line) for line in read_lines(path)]


def data_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
