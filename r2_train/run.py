"""One training run: its directory, and its stages in order. A stage that runs again does only what is
missing.

DIR/config.yaml                  the settings of the run; another config is refused
    calls/                       every model call, by its content
    collect/  search/            candidate plans; allocation schemes
    decomposer/sft/ allocator/sft/   examples.jsonl, metrics.jsonl, tensorboard/, final/
    rounds/01-allocator/ ...     the same files for each half-round, and its checkpoints
    reference.json  rounds.jsonl  the reference's cost; the table, a line per half-round
    best/decomposer  best/allocator   the best pair on validation tasks
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import yaml
from rich.console import Console

from r2_serve import EMBEDDED_CONFIG
from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.jsonl import read_jsonl
from r2_serve.lab.runs import code_version, machine
from r2_serve.serve_config import load
from r2_train.config import MODULES, Module, TrainConfig
from r2_train.launch.launch import launch
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.described_pool import DescribedPool, described
from r2_train.rollouts.served_pool import Checkpoint, ServedPool, open_pool
from r2_train.stages.collect import PLANS, CollectedTask, Collector, CollectSummary
from r2_train.stages.examples import allocation_example, plan_example, write_examples
from r2_train.stages.measure import RouterScore, measure, measure_reference
from r2_train.stages.model_files import has_final
from r2_train.stages.rewards import Reference
from r2_train.stages.search import SCHEMES, PlannedTask, SearchedPlan, Searcher, SearchSummary
from r2_train.stages.sft import SftStage
from r2_train.stages.sft import run as sft_stage
from r2_train.stages.tasks import TaskSplit

PACKAGES = ("torch", "transformers", "trl", "peft", "ray")
Pair = dict[Module, Path]
"""A checkpoint of each module."""


@dataclass(frozen=True)
class TrainingRun:
    """A run in its directory. Raises: ConfigError if the directory holds another run."""

    config: TrainConfig
    directory: Path
    console: Console

    def __post_init__(self) -> None:
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        path = self.directory / "config.yaml"
        self.directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text)
        elif path.read_text() != text:
            raise ConfigError(
                f"{path} belongs to another run: {_difference(path.read_text(), text)}. "
                "Choose another --out, or remove the directory"
            )

    @cached_property
    def tasks(self) -> TaskSplit:
        """The data. Their first reading writes `manifest.json`, which says what the run is made of."""
        tasks = TaskSplit.load(self.config.data)
        path = self.directory / "manifest.json"
        if not path.exists():
            path.write_text(json.dumps(self._manifest(tasks), indent=2) + "\n")
        return tasks

    @cached_property
    def described(self) -> DescribedPool:
        """The pool without engines."""
        return described(self.config.pool)

    def _manifest(self, tasks: TaskSplit) -> dict[str, object]:
        codecs = {module: self.described.codec_of(module) for module in MODULES}
        return {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "code_version": code_version(),
            "data_sha256": tasks.sha256,
            "num_train": len(tasks.train),
            "num_validation": len(tasks.validation),
            "codecs": {module: f"{codec.name} {codec.version}" for module, codec in codecs.items()},
            "pool": list(self.described.pool),
            "packages": {name: version(name) for name in PACKAGES},
            "machine": machine(),
        }

    @contextlib.asynccontextmanager
    async def pool(self, modules: Mapping[Module, Path] | None = None) -> AsyncIterator[ServedPool]:
        """The served pool behind this run's cache. `modules` replace the configured ones."""
        checkpoints = {name: Checkpoint(path=path) for name, path in (modules or {}).items()}
        with CallCache(self.directory / "calls" / "calls-0.sqlite", self.config.max_cost_usd) as cache:
            pool = open_pool(self.config.pool, cache, checkpoints)
            async with contextlib.aclosing(pool):
                yield pool

    # -- data
    # -----------------------------------------------------------------------------------------------------

    async def collect(self, modules: Mapping[Module, Path] | None = None) -> CollectSummary:
        """Collects plans for every training and validation task. `modules` may hold the teacher."""
        async with self.pool(modules) as pool:
            collector = Collector(pool, self.config.collect, Grader(), self.directory / "collect")
            return await collector.run([*self.tasks.train, *self.tasks.validation], self.console)

    async def search(self) -> SearchSummary:
        """Searches schemes for the plans of training tasks, with thresholds fitted on validation tasks."""
        train, validation = self._kept_plans()
        async with self.pool() as pool:
            searcher = Searcher(pool, self.config.search, Grader(), self.directory / "search")
            return await searcher.run(train[: self.config.search.num_plans], validation, self.console)

    def _kept_plans(self) -> tuple[list[PlannedTask], list[PlannedTask]]:
        rows = read_jsonl(self.directory / "collect" / PLANS, CollectedTask)
        plans = {row.task_id: row.plan for row in rows if row.plan is not None}
        if not plans:
            raise ConfigError(f"no kept plan in {self.directory / 'collect'}: run `r2-train collect` first")

        def planned(tasks: tuple[Task, ...]) -> list[PlannedTask]:
            return [PlannedTask(task, plan) for task in tasks if (plan := plans.get(task.id)) is not None]

        return planned(self.tasks.train), planned(self.tasks.validation)

    # -- supervised
    # -----------------------------------------------------------------------------------------------

    def sft(self, module: Module, base: str | None = None) -> Path:
        """Fine-tunes the module on the results of collect or search. Returns its checkpoint."""
        directory = self.directory / module / "sft"
        config = self.config.module(module).sft
        if not has_final(directory):
            examples = self.write_sft_examples(module)
            start = base or config.base or self._served_base(module)
            stage = SftStage(examples=examples, base=start, sft=config, seed=self.config.seed)
            launch(sft_stage, stage, launch=self.config.launch, directory=directory)
        return directory / "final"

    def sft_pair(self) -> Pair:
        """Both modules as `sft` left them. Raises: ConfigError if one is missing."""
        pair: Pair = {module: self.directory / module / "sft" / "final" for module in MODULES}
        missing = [module for module, path in pair.items() if not has_final(path.parent)]
        if missing:
            command = f"r2-train sft --module {missing[0]}"
            raise ConfigError(f"{self.directory} has no trained {missing[0]}: run `{command}` first")
        return pair

    def write_sft_examples(self, module: Module) -> Path:
        pool = self.described
        if module == "decomposer":
            examples = [plan_example(pool, p.task.id, p.task.query, p.plan) for p in self._kept_plans()[0]]
        else:
            rows = read_jsonl(self.directory / "search" / SCHEMES, SearchedPlan)
            examples = [
                allocation_example(pool, row.task_id, row.query, row.plan, row.models)
                for row in rows
                if row.models
            ]
        if not examples:
            raise ConfigError(
                f"no example for the {module} in {self.directory}: run `r2-train collect` and "
                "`r2-train search` first"
            )
        return write_examples(self.directory / module / "sft" / "examples.jsonl", examples)

    def _served_base(self, module: Module) -> str:
        """The checkpoint of the module's model in the serve config. Raises: ConfigError if it has none."""
        served = load(self.config.pool.serve_config or EMBEDDED_CONFIG)
        virtual = served.routing.virtual_models[self.config.pool.virtual_model]
        name = virtual.decomposer.model if module == "decomposer" else virtual.allocator.model
        engine = served.router.model(name).engine
        app = served.model_apps[engine.app].engine if engine.kind == "served" else None
        base = getattr(app, "path", None) or getattr(app, "model", None)
        if base is None:
            raise ConfigError(f"{name!r} has no checkpoint to train: set {module}.sft.base")
        return str(base)

    # -- measuring
    # ------------------------------------------------------------------------------------------------

    async def reference(self, pair: Pair) -> Reference:
        """The cost that others are divided by. The first pair measures it once, on validation tasks."""
        path = self.directory / "reference.json"
        if not path.exists():
            async with self.pool(pair) as pool:
                reference = await measure_reference(pool, self.tasks.validation, self.config.pool.reference)
            path.write_text(reference.model_dump_json(indent=2) + "\n")
        return Reference.model_validate_json(path.read_text())

    async def validate(self, pair: Pair, reference: Reference) -> RouterScore:
        """The score of the pair on validation tasks."""
        async with self.pool(pair) as pool:
            return await measure(pool, self.tasks.validation, Grader(), reference)

    def keep_best(self, pair: Pair) -> Pair:
        """Copies the pair to `best/`, completely or not at all."""
        best, draft = self.directory / "best", self.directory / "best.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        for module, path in pair.items():
            shutil.copytree(path, draft / module)
        shutil.rmtree(best, ignore_errors=True)
        draft.rename(best)
        return {module: best / module for module in pair}


def _difference(old: str, new: str) -> str:
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    return next((f"there {a.strip()!r}, now {b.strip()!r}" for a, b in pairs if a != b), "its length differs")
