"""`r2-train retrain`: the embedded routers from nothing but the shipped workers; per domain, the whole pipeline.

    pretrain a decomposer that writes plans of every style  ->  collect  ->  search  ->  SFT of both  ->  alternate (GRPO)  ->  test

The base decomposer stands for what an instruct model knows before any training here: it can write plans, but not which pay.
Test tasks are read once, at the end. `summary.json` holds the figures, a directory per domain and seed everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.benchmarks import load_tasks, sample_tasks
from r2_serve.lab.runs import machine
from r2_train.config import TrainConfig, load_config
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import RoundRow, alternate
from r2_train.stages.curves import draw_curves
from r2_train.stages.measure import RouterScore, measure, measure_reference
from r2_train.tiny.pretrain import pretrain
from r2_train.tiny.tiny_data import DomainName

CONFIGS = Path(__file__).parent / "configs"
DOMAINS: tuple[DomainName, ...] = ("words", "scan")
TESTS: dict[DomainName, tuple[str, ...]] = {"words": ("test",), "scan": ("length", "simple")}
"""Held-out splits; the first is the headline."""
NUM_TEST_TASKS = 1000
SUMMARY = "summary.json"


def domains_of(name: str) -> tuple[DomainName, ...]:
    """`words`, `scan` or `both`."""
    return tuple(domain for domain in DOMAINS if name in (domain, "both"))


def retrain(
    domains: Sequence[DomainName],
    out: Path,
    *,
    seeds: Sequence[int],
    console: Console,
    num_test: int = NUM_TEST_TASKS,
) -> dict[str, Any]:
    """Every domain with every seed; the figures, which are also in `summary.json`. Goes on where it was stopped."""
    summary: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
    }
    for domain in domains:
        results = [_one(domain, out / f"{domain}-{seed}", seed, num_test, console) for seed in seeds]
        summary[domain] = {**_means(results), "seeds": results}
        _write(out / SUMMARY, summary)
    print_summary(summary, domains, console)
    return summary


def _one(domain: DomainName, directory: Path, seed: int, num_test: int, console: Console) -> dict[str, Any]:
    """One seed of one domain; a finished one is read."""
    done = directory / SUMMARY
    if done.exists():
        return dict(json.loads(done.read_text()))
    console.rule(Text(f"{domain}, seed {seed}", style="bold"))
    watch = Stopwatch(directory / "cpu_seconds.json")
    run = TrainingRun(config_of(domain, seed), directory, console)
    pair, rows = train_pair(run, base_decomposer(domain, directory / "pretrain", seed, watch), watch)
    draw_curves(directory)
    tests = {split: asyncio.run(test(run, pair, domain, split, num_test)) for split in TESTS[domain]}
    headline = tests[TESTS[domain][0]]
    result = {
        "seed": seed,
        "data_sha256": run.tasks.sha256,
        "accuracy": headline.accuracy,
        "worker_cost_ratio": headline.worker_cost_ratio,
        "total_cost_ratio": headline.total_cost_ratio,
        "cpu_seconds": round(sum(watch.cpu_seconds.values()), 1),
        "cpu_seconds_of": watch.cpu_seconds,
        "tests": {split: score.model_dump() for split, score in tests.items()},
        "rounds": [row.model_dump() for row in rows],
    }
    _write(done, result)
    return result


def config_of(domain: DomainName, seed: int) -> TrainConfig:
    """The shipped configuration of a domain."""
    config = load_config(CONFIGS / f"embedded-{domain}.yaml")
    return config.model_copy(update={"seed": seed, "data": config.data.model_copy(update={"seed": seed})})


@dataclass
class Stopwatch:
    """CPU seconds of this process by stage (wall time would tell what else the machine did), earlier tries at the run included."""

    path: Path
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.cpu_seconds.update(json.loads(self.path.read_text()))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started_s = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds[name] = round(
                self.cpu_seconds.get(name, 0.0) + time.process_time() - started_s, 1
            )
            _write(self.path, self.cpu_seconds)


def base_decomposer(domain: DomainName, out: Path, seed: int, watch: Stopwatch) -> Path:
    """A decomposer that writes plans of every style, trained from random weights."""
    name = f"{domain}-decomposer"
    with watch.stage("pretrain"):
        if not (out / name / "model.safetensors").exists():
            pretrain(domain, out, seed=seed, only=name)
    return out / name


def train_pair(run: TrainingRun, base: Path, watch: Stopwatch) -> tuple[Pair, list[RoundRow]]:
    """Collect, search, SFT, alternate."""
    with watch.stage("collect"):
        run.console.print(asyncio.run(run.collect({"decomposer": base})))
    with watch.stage("search"):
        run.console.print(asyncio.run(run.search()))
    with watch.stage("sft"):
        start: Pair = {"decomposer": run.sft("decomposer", base=str(base)), "allocator": run.sft("allocator")}
    with watch.stage("alternate"):
        return asyncio.run(alternate(run, start))


async def test(run: TrainingRun, pair: Pair, domain: DomainName, split: str, num_tasks: int) -> RouterScore:
    """The pair on held-out tasks, costs over those of the reference on these very tasks."""
    tasks = test_tasks(domain, split, num_tasks)
    with run.pool(pair) as pool:
        reference = await measure_reference(pool, tasks, run.config.pool.reference)
        return await measure(pool, tasks, Grader(), reference)


def test_tasks(domain: DomainName, split: str, num_tasks: int) -> tuple[Task, ...]:
    return sample_tasks(load_tasks(domain, split), num_tasks)


def print_summary(summary: dict[str, Any], domains: Sequence[DomainName], console: Console) -> None:
    table = Table(title="held-out tasks, after training; costs over the reference")
    for heading in ("domain", "seed", "split", "accuracy", "workers", "+ router", "CPU s"):
        table.add_column(heading, justify="left" if heading in ("domain", "split") else "right")
    for domain in domains:
        for result in summary[domain]["seeds"]:
            for split, score in result["tests"].items():
                ratios = [
                    f"{100 * score[name]:.1f} %"
                    for name in ("accuracy", "worker_cost_ratio", "total_cost_ratio")
                ]
                table.add_row(domain, str(result["seed"]), split, *ratios, f"{result['cpu_seconds']:.0f}")
    console.print(table)


def _means(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        name: fmean(result[name] for result in results)
        for name in ("accuracy", "worker_cost_ratio", "total_cost_ratio", "cpu_seconds")
    }


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=2))
