"""One training run: its directory, and its stages in order. A stage that runs again does only what is
missing, and a changed setting has the stages made again that depend on it.

DIR/config.yaml                  the settings of the newest command
    made_from.json               what each stage was made from
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
from pathlib import Path

import yaml
from rich.console import Console

from r2_serve import EMBEDDED_CONFIG
from r2_serve.config import HostedEngineConfig
from r2_serve.errors import ConfigError, counted
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.jsonl import read_jsonl
from r2_serve.lab.runs import code_version, machine, packages
from r2_serve.serve_config import load
from r2_train.config import MODULES, Module, TrainConfig
from r2_train.launch.launch import launch
from r2_train.provenance import Facts, Provenance, checkpoint_facts, dumped, pool_facts, sha256_of
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.described_pool import DescribedPool, described
from r2_train.rollouts.served_pool import Checkpoint, MadeOnce, ServedPool, open_engines, open_pool
from r2_train.stages.collect import PLANS, CollectedTask, Collector, CollectSummary
from r2_train.stages.examples import (
    Example,
    allocated_plan_example,
    allocation_example,
    plan_example,
    write_examples,
)
from r2_train.stages.measure import RouterScore, measure, measure_reference
from r2_train.stages.model_files import has_final
from r2_train.stages.rates import RateSummary, fit_weight, market_examples, summary
from r2_train.stages.rewards import Reference
from r2_train.stages.search import SCHEMES, PlannedTask, SearchedPlan, Searcher, SearchSummary
from r2_train.stages.sft import SftStage
from r2_train.stages.sft import run as sft_stage
from r2_train.stages.tasks import TaskSplit

PACKAGES = frozenset({"torch", "transformers", "trl", "peft", "ray"})
Pair = dict[Module, Path]
"""A checkpoint of each module."""


@dataclass(frozen=True)
class TrainingRun:
    """A run in its directory."""

    config: TrainConfig
    directory: Path
    console: Console

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_whole(self.directory / "config.yaml", text)

    @cached_property
    def provenance(self) -> Provenance:
        return Provenance(self.directory, self.console)

    @cached_property
    def tasks(self) -> TaskSplit:
        """The data. Reading them writes `manifest.json`, which says what the run is made of."""
        tasks = TaskSplit.load(self.config.data)
        write_whole(self.directory / "manifest.json", json.dumps(self._manifest(tasks), indent=2) + "\n")
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
            "packages": {name: found for name, found in packages().items() if name in PACKAGES},
            "machine": machine(),
        }

    @contextlib.asynccontextmanager
    async def pool(
        self, modules: Mapping[Module, Path] | None = None, shared: MadeOnce | None = None
    ) -> AsyncIterator[ServedPool]:
        """The served pool behind this run's cache. `modules` replace the configured ones; `shared` engines
        outlive the pool."""
        checkpoints = {name: Checkpoint(path=path) for name, path in (modules or {}).items()}
        with CallCache(self.directory / "calls" / "calls-0.sqlite", self.config.max_cost_usd) as cache:
            pool = open_pool(self.config.pool, cache, checkpoints, shared)
            async with contextlib.aclosing(pool):
                yield pool

    # -- data
    # -----------------------------------------------------------------------------------------------------

    async def collect(self, modules: Mapping[Module, Path] | None = None) -> CollectSummary:
        """Collects plans for every training and validation task. `modules` may hold the teacher."""
        self.provenance.renew("collect", self._collect_facts(modules or {}), self.directory / "collect")
        async with self.pool(modules) as pool:
            collector = Collector(pool, self.config.collect, Grader(), self.directory / "collect")
            return await collector.run([*self.tasks.train, *self.tasks.validation], self.console)

    async def search(self) -> SearchSummary | RateSummary:
        """Searches schemes for the plans of training tasks, with thresholds fitted on validation tasks.

        A run on markets reckons its labels from solve rates: it fits their weight, and runs no plan.
        """
        train, validation = self.kept_plans()
        if self.config.markets:
            plans, cards = [item.plan for item in validation], self.described.cards
            return summary(plans, cards, fit_weight(plans, cards))
        self.provenance.renew("search", self._search_facts(), self.directory / "search")
        async with self.pool() as pool:
            searcher = Searcher(pool, self.config.search, Grader(), self.directory / "search")
            return await searcher.run(train[: self.config.search.num_plans], validation, self.console)

    def _collect_facts(self, modules: Mapping[Module, Path]) -> Facts:
        """A row of `collect` depends on its task, whichever others are drawn with it."""
        return {
            "collect": dumped(self.config.collect),
            "pool": pool_facts(self.described, with_prices=False),
            "tasks": [self.config.data.benchmark, self.config.data.data, self.config.data.grader],
            "modules": {name: checkpoint_facts(path) for name, path in modules.items()},
        }

    def _search_facts(self) -> Facts:
        return {
            "search": dumped(self.config.search),
            "pool": pool_facts(self.described, with_prices=True),
            "tasks": [self.config.data.benchmark, self.config.data.data, self.config.data.grader],
        }

    def kept_plans(self) -> tuple[list[PlannedTask], list[PlannedTask]]:
        """The training and the validation tasks that `collect` kept a plan for. Raises: ConfigError."""
        rows = list(read_jsonl(self.directory / "collect" / PLANS, CollectedTask))
        plans = {row.task_id: row.plan for row in rows if row.plan is not None}
        if not plans and rows:
            raise ConfigError(
                f"`r2-train collect` kept no plan of {counted(len(rows), 'task')}: none was valid and right; "
                f"{self.directory / 'collect' / PLANS} has them"
            )
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
        start = base or base_of(self.config, module)
        examples = self.sft_examples(module)
        facts: Facts = {
            "sft": dumped(config),
            "base": checkpoint_facts(start),
            "examples": sha256_of(examples),
            "seed": self.config.seed,
        }
        self.provenance.renew(f"{module}/sft", facts, directory)
        if not has_final(directory):
            path = write_examples(directory / "examples.jsonl", examples)
            stage = SftStage(examples=path, base=start, sft=config, seed=self.config.seed)
            launch(sft_stage, stage, launch=self.config.launch, directory=directory)
        return directory / "final"

    def sft_pair(self) -> Pair:
        """Both modules as `sft` left them. Raises: ConfigError if one is missing, or both are one."""
        if self.described.virtual.decomposer.allocates:
            raise ConfigError(
                "GRPO trains a decomposer and an allocator apart, but this decomposer allocates: take what "
                "`r2-train sft --module decomposer` made, or set allocates: false"
            )
        pair: Pair = {module: self.directory / module / "sft" / "final" for module in MODULES}
        missing = [module for module, path in pair.items() if not has_final(path.parent)]
        if missing:
            command = f"r2-train sft --module {missing[0]}"
            raise ConfigError(f"{self.directory} has no trained {missing[0]}: run `{command}` first")
        return pair

    def sft_examples(self, module: Module) -> list[Example]:
        """The examples that collect and search give. Raises: ConfigError if there is none."""
        pool, planned = self.described, self.kept_plans()[0]
        if module == "decomposer" and not pool.virtual.decomposer.allocates:
            examples = [plan_example(pool, p.task.id, p.task.query, p.plan) for p in planned]
        elif self.config.markets:
            examples = market_examples(pool, *self.kept_plans(), self.config.markets, self.config.seed)
        else:
            self.provenance.note_if_stale("search", self._search_facts())
            keys = {item.key for item in planned}
            rows = read_jsonl(self.directory / "search" / SCHEMES, SearchedPlan)
            example = allocated_plan_example if module == "decomposer" else allocation_example
            examples = [
                example(pool, row.task_id, row.query, row.plan, row.models)
                for row in rows
                if row.models and row.key in keys
            ]
        if not examples:
            raise ConfigError(
                f"no example for the {module} in {self.directory}: run `r2-train collect` and "
                "`r2-train search` first"
            )
        return examples

    # -- measuring
    # ------------------------------------------------------------------------------------------------

    async def reference(self, pair: Pair) -> Reference:
        """The cost that others are divided by. The first pair measures it once, on validation tasks."""
        path = self.directory / "reference.json"
        facts: Facts = {
            "kind": self.config.pool.reference,
            "pool": pool_facts(self.described, with_prices=True),
            "tasks": sha256_of(self.tasks.validation),
        }
        self.provenance.renew("reference", facts, path)
        if not path.exists():
            async with self.pool(pair) as pool:
                reference = await measure_reference(pool, self.tasks.validation, self.config.pool.reference)
            path.write_text(reference.model_dump_json(indent=2) + "\n")
        return Reference.model_validate_json(path.read_text())

    async def validate(self, pairs: Mapping[Path, Pair], reference: Reference) -> dict[Path, RouterScore]:
        """The score of each pair on validation tasks. The pool's own engines serve all of them."""
        scores = {}
        async with contextlib.aclosing(open_engines(self.config.pool)) as shared:
            for name, pair in pairs.items():
                async with self.pool(pair, shared) as pool:
                    scores[name] = await measure(pool, self.tasks.validation, Grader(), reference)
        return scores

    def keep_best(self, pair: Pair) -> Pair:
        """Copies the pair to `best/`, completely or not at all."""
        best, draft = self.directory / "best", self.directory / "best.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        for module, path in pair.items():
            shutil.copytree(path, draft / module)
        shutil.rmtree(best, ignore_errors=True)
        draft.rename(best)
        return {module: best / module for module in pair}


def base_of(config: TrainConfig, module: Module) -> str:
    """The checkpoint that the module's training starts from: its own, or that of its model in the serve
    config.

    Raises: ConfigError if that model has none.
    """
    if (base := config.module(module).sft.base) is not None:
        return base
    served = load(config.pool.serve_config or EMBEDDED_CONFIG)
    virtual = served.routing.virtual_models[config.pool.virtual_model]
    name = virtual.decomposer.model if module == "decomposer" else virtual.allocator.model
    engine = served.router.model(name).engine
    run_by = served.model_apps[engine.app].engine if engine.kind == "served" else engine
    is_local = not isinstance(run_by, HostedEngineConfig)
    found = getattr(run_by, "path", None) or (getattr(run_by, "model", None) if is_local else None)
    if found is None:
        raise ConfigError(f"{name!r} has no checkpoint to train: set {module}.sft.base")
    return str(found)
