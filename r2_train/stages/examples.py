"""Training examples: prompts and targets, written by the codecs that also serve.

An `Example` is one exchange. SFT needs its target, GRPO what the reward must know (the task, and the plan to
allocate). Examples are JSONL files in the run directory, so that a stage in another process can read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from r2_serve.config import VirtualModelConfig
from r2_serve.files import read_lines, whole_file
from r2_serve.prompts.conversation import asked
from r2_serve.types import Allocation, Message, ModelCard, Plan, Record
from r2_train.rollouts.described_pool import DescribedPool
from r2_train.rollouts.markets import Market


class Example(Record):
    """One exchange with a module."""

    task_id: str
    query: str
    messages: tuple[Message, ...]
    target: str | None = None
    """The reply to learn; None if a reward judges the module's own reply."""
    plan: Plan | None = None
    """The plan to allocate; None for the decomposer."""
    market: Market | None = None
    """The models on offer and their prices; None for the pool as it is."""


def plan_example(pool: DescribedPool, task_id: str, query: str, plan: Plan | None = None) -> Example:
    """The decomposer's example: it is given the query and has to write the plan."""
    codec = pool.codec_of("decomposer")
    messages = tuple(codec.render_decompose(asked(query), pool.routing.limits.max_subtasks))
    target = None if plan is None else codec.format_plan(plan, query)
    return Example(task_id=task_id, query=query, messages=messages, target=target)


def allocated_plan_example(
    pool: DescribedPool, task_id: str, query: str, plan: Plan, models: Sequence[str]
) -> Example:
    """The example of a decomposer that allocates: it has to write the plan with the model of each step."""
    codec = pool.codec_of("decomposer")
    messages = codec.render_decompose(asked(query), pool.routing.limits.max_subtasks, pool.cards)
    target = codec.format_allocated(plan, Allocation(models=tuple(models)), query, pool.cards)
    return Example(task_id=task_id, query=query, messages=tuple(messages), target=target)


def allocation_example(
    pool: DescribedPool, task_id: str, query: str, plan: Plan, models: Sequence[str] | None = None,
    *, market: Market | None = None, cards: Sequence[ModelCard] | None = None,
) -> Example:  # fmt: skip
    """The allocator's example: it is given the plan and has to write the models.

    It chooses among `cards`; else among the models of `market`; else among the pool's.
    """
    codec = pool.codec_of("allocator")
    offered = cards or (pool.cards if market is None else market.cards(pool.cards))
    messages = tuple(codec.render_allocate(read_by_allocator(pool.virtual, query), plan, offered))
    target = None
    if models is not None:
        target = codec.format_allocation(Allocation(models=tuple(models)), plan, offered)
    return Example(task_id=task_id, query=query, messages=messages, target=target, plan=plan, market=market)


def read_by_allocator(virtual: VirtualModelConfig, query: str) -> tuple[Message, ...]:
    """What the allocator reads of the conversation, as in serving: all of it, or the plan alone."""
    return asked(query) if virtual.context == "full" else ()


def write_examples(path: Path, examples: Iterable[Example]) -> Path:
    """Writes all examples, or leaves `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.writelines(f"{example.model_dump_json(exclude_defaults=True)}\n" for example in examples)
    return path


def read_examples(path: Path) -> list[Example]:
    return [Example.model_validate_json(line) for line in read_lines(path)]
