"""`r2-train retrain`: trains the embedded routers from nothing but the shipped workers.

For each domain it runs the whole pipeline: it pretrains a decomposer that writes plans of every style, then
runs collect, search, SFT of both modules, alternating GRPO and the test. The pretrained decomposer stands for
an instruct model before training: it can write plans, but does not know which of them pay. That of everyday
problems takes ten minutes, so all seeds begin with the shipped one. Test tasks are read once, at the end.
`summary.json` holds the figures; a directory per domain and seed holds the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2_serve import EMBEDDED
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.lab.evaluation.benchmarks import load_tasks, sample_tasks
from r2_serve.lab.runs import machine
from r2_serve.types import Record
from r2_train.config import TrainConfig, load_config
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import RoundRow, alternate
from r2_train.stages.curves import draw_curves
from r2_train.stages.measure import RouterScore, measure, measure_reference
from r2_train.tiny.pretrain import pretrain
from r2_train.tiny.tiny_data import DomainName

CONFIGS = Path(__file__).parent / "configs"
DOMAINS: tuple[DomainName, ...] = ("everyday", "words", "scan")
TESTS: dict[DomainName, tuple[str, ...]] = {
    "everyday": ("test",), "words": ("test",), "scan": ("length", "simple"),
}  # fmt: skip
"""The held-out splits of each domain. The first one is the headline."""
NUM_TEST_TASKS = 1000
SUMMARY = "summary.json"


def domains_of(name: str) -> tuple[DomainName, ...]:
    """The domains that a name, or `all`, stands for."""
    return tuple(domain for domain in DOMAINS if name in (domain, "all"))


def retrain(
    domains: Sequence[DomainName],
    out: Path,
    *,
    seeds: Sequence[int],
    console: Console,
    num_test: int = NUM_TEST_TASKS,
) -> None:
    """Runs every domain with every seed and writes the figures to `summary.json`. It continues a run that was
    stopped."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    summary: dict[str, object] = {"date": date, "machine": machine()}
    results: dict[DomainName, list[SeedResult]] = {}
    for domain in domains:
        results[domain] = [_one(domain, out / f"{domain}-{seed}", seed, num_test, console) for seed in seeds]
        seed_rows = [result.model_dump(mode="json") for result in results[domain]]
        summary[domain] = {**_means(results[domain]), "seeds": seed_rows}
        _write(out / SUMMARY, summary)
    console.print(summary_table(results))


class SeedResult(Record):
    """The figures of one domain and seed. The first four repeat those of the headline split."""

    seed: int
    data_sha256: str
    accuracy: float
    worker_cost_ratio: float
    total_cost_ratio: float
    cpu_seconds: float
    cpu_seconds_of: dict[str, float]
    """CPU seconds of each stage."""
    tests: dict[str, RouterScore]
    """Score on each held-out split."""
    rounds: tuple[RoundRow, ...]


def _one(domain: DomainName, directory: Path, seed: int, num_test: int, console: Console) -> SeedResult:
    """Runs one seed of one domain, or reads its result if it is finished."""
    done = directory / SUMMARY
    if done.exists():
        return SeedResult.model_validate_json(done.read_text())
    console.rule(Text(f"{domain}, seed {seed}", style="bold"))
    watch = Stopwatch(directory / "cpu_seconds.json")
    run = TrainingRun(config_of(domain, seed), directory, console)
    pair, rows = train_pair(run, base_decomposer(domain, directory / "pretrain", seed, watch), watch)
    draw_curves(directory)
    tests = {split: asyncio.run(test(run, pair, domain, split, num_test)) for split in TESTS[domain]}
    headline = tests[TESTS[domain][0]]
    result = SeedResult(
        seed=seed,
        data_sha256=run.tasks.sha256,
        accuracy=headline.accuracy,
        worker_cost_ratio=headline.worker_cost_ratio,
        total_cost_ratio=headline.total_cost_ratio,
        cpu_seconds=round(sum(watch.cpu_seconds.values()), 1),
        cpu_seconds_of=watch.cpu_seconds,
        tests=tests,
        rounds=tuple(rows),
    )
    _write(done, result.model_dump(mode="json"))
    return result


def config_of(domain: DomainName, seed: int) -> TrainConfig:
    """The shipped configuration of a domain."""
    config = load_config(CONFIGS / f"embedded-{domain}.yaml")
    return config.model_copy(update={"seed": seed, "data": config.data.model_copy(update={"seed": seed})})


@dataclass
class Stopwatch:
    """CPU seconds of this process by stage, with earlier tries at the same run included.

    Wall time would depend on the other work of the machine.
    """

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
            spent_s = self.cpu_seconds.get(name, 0.0) + time.process_time() - started_s
            self.cpu_seconds[name] = round(spent_s, 1)
            _write(self.path, self.cpu_seconds)


def base_decomposer(domain: DomainName, out: Path, seed: int, watch: Stopwatch) -> Path:
    """A decomposer that writes plans of every style, trained from random weights; the shipped one of
    `everyday`."""
    name = f"{domain}-decomposer"
    if domain == "everyday":
        return EMBEDDED / name
    with watch.stage("pretrain"):
        if not (out / name / "model.safetensors").exists():
            pretrain(domain, out, seed=seed, only=name)
    return out / name


def train_pair(run: TrainingRun, base: Path, watch: Stopwatch) -> tuple[Pair, list[RoundRow]]:
    """Runs collect, search, SFT and alternate. Returns the best pair and the table of half-rounds."""
    with watch.stage("collect"):
        run.console.print(asyncio.run(run.collect({"decomposer": base})))
    with watch.stage("search"):
        run.console.print(asyncio.run(run.search()))
    with watch.stage("sft"):
        start: Pair = {"decomposer": run.sft("decomposer", base=str(base)), "allocator": run.sft("allocator")}
    with watch.stage("alternate"):
        return asyncio.run(alternate(run, start))


async def test(run: TrainingRun, pair: Pair, domain: DomainName, split: str, num_tasks: int) -> RouterScore:
    """The score of the pair on held-out tasks. Costs are divided by the reference's on the same tasks."""
    tasks = sample_tasks(load_tasks(domain, split), num_tasks)
    async with run.pool(pair) as pool:
        reference = await measure_reference(pool, tasks, run.config.pool.reference)
        return await measure(pool, tasks, Grader(), reference)


def summary_table(results: Mapping[DomainName, Sequence[SeedResult]]) -> Table:
    """One row per domain, seed and split."""
    table = Table(title="held-out tasks, after training; costs over the reference")
    for heading in ("domain", "seed", "split", "accuracy", "workers", "+ router", "CPU s"):
        table.add_column(heading, justify="left" if heading in ("domain", "split") else "right")
    rows = ((domain, result) for domain, seeds in results.items() for result in seeds)
    for domain, result in rows:
        for split, score in result.tests.items():
            ratios = (score.accuracy, score.worker_cost_ratio, score.total_cost_ratio)
            percents = [f"{100 * ratio:.1f} %" for ratio in ratios]
            table.add_row(domain, str(result.seed), split, *percents, f"{result.cpu_seconds:.0f}")
    return table


def _means(results: Sequence[SeedResult]) -> dict[str, float]:
    names = ("accuracy", "worker_cost_ratio", "total_cost_ratio", "cpu_seconds")
    return {name: fmean(getattr(result, name) for result in results) for name in names}


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=2))
