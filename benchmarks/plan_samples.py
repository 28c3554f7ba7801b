"""What sampling plans one after the other saves on the embedded pool, beside sampling them all at once.

    python -m benchmarks.plan_samples

Each query may have three samples. At once, all three are paid and the best is kept. In turn, the first that
is good enough ends the sampling (`decomposer.good_enough`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.plan_or_not import EMBEDDED
from r2_serve.calls.pool import in_process_engines
from r2_serve.lab.domains import Task, scan, words
from r2_serve.prompts.conversation import asked
from r2_serve.router.router import Router, in_process
from r2_serve.serve_config import load_without_ray
from r2_serve.types import Query, Trace

NUM_SAMPLES, NUM_AT_ONCE, SEED = 3, 16, 20_261_128
WAYS: dict[str, float | None] = {"at once": None, "in turn": 0.25}
"""`good_enough` of each way."""


@dataclass(frozen=True)
class SampleRow:
    """One way on one domain; calls and tokens are the decomposer's, per query."""

    virtual_model: str
    way: str
    accuracy: float
    calls: float
    tokens: float


def tasks_of(virtual_model: str, count: int) -> Sequence[Task]:
    if virtual_model == "r2":
        return words.tasks("test", count, SEED)
    everything = scan.tasks("length")
    return everything[:: len(everything) // count][:count]


def router_of(virtual_model: str, good_enough: float | None) -> Router:
    config = load_without_ray(EMBEDDED)
    virtual = config.routing.virtual_models[virtual_model]
    sampling = {"num_samples": NUM_SAMPLES, "good_enough": good_enough}
    decomposer = virtual.decomposer.model_copy(update=sampling)
    models = {virtual_model: virtual.model_copy(update={"decomposer": decomposer})}
    routing = config.routing.model_copy(update={"virtual_models": models})
    return in_process(config.router, routing, in_process_engines(config.model_apps))


async def measure(virtual_model: str, way: str, count: int) -> SampleRow:
    router, places = router_of(virtual_model, WAYS[way]), asyncio.Semaphore(NUM_AT_ONCE)

    async def answer(task: Task) -> tuple[bool, Trace]:
        async with places:
            answer = await router.answer(
                Query(request_id=task.id, model=virtual_model, messages=asked(task.query))
            )
        return answer.text.strip() == task.gold, answer.trace

    answers = await asyncio.gather(*map(answer, tasks_of(virtual_model, count)))
    plans = [[c for c in trace.calls if c.stage == "decompose"] for _, trace in answers]
    return SampleRow(
        virtual_model,
        way,
        accuracy=fmean(is_right for is_right, _ in answers),
        calls=fmean(map(len, plans)),
        tokens=fmean(sum(call.usage.total_tokens for call in calls) for calls in plans),
    )


def main(count: Annotated[int, typer.Option(min=1, help="Queries of each domain.")] = 300) -> None:
    """Prints accuracy, calls and tokens of both ways."""
    table = Table("virtual model", "samples", "accuracy", "plans sampled", "tokens of the decomposer")
    for virtual_model in ("r2", "r2-scan"):
        for way in WAYS:
            row = asyncio.run(measure(virtual_model, way, count))
            table.add_row(
                virtual_model, way, f"{100 * row.accuracy:.1f} %", f"{row.calls:.2f}", f"{row.tokens:.1f}"
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
