"""Trains the embedded models from random weights: the workers of a pool, then its decomposer and its
allocator.

This is supervised learning only; `r2-train retrain` adds reinforcement learning, from a decomposer that
writes plans of every style. The allocator comes last, because its labels are solve rates of the trained
workers. Each model becomes a Hugging Face checkpoint, and `manifest.json` next to them says how it was made.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from transformers.utils.logging import disable_progress_bar

from r2_serve.lab.domains import scan, words
from r2_train.tiny.chain_of_thought import chain_examples, evaluate_chain
from r2_train.tiny.evaluate_pool import (
    MANIFEST,
    MAX_ANSWER_TOKENS,
    SPLITS,
    evaluate_router,
    exact_plan_rate,
    held_out_tasks,
    report_json,
)
from r2_train.tiny.market_data import everyday_allocation_examples, market_words
from r2_train.tiny.pool_execution import decompose
from r2_train.tiny.skills import everyday_skills
from r2_train.tiny.solve_rates import cheapest, choose_target, scan_rates, words_rates
from r2_train.tiny.tiny_data import (
    CHAINS,
    CODEC,
    MAX_OPERAND,
    DomainName,
    Styles,
    allocation_example,
    ask,
    calculation_example,
    everyday_plan_examples,
    everyday_worker_examples,
    everyday_worker_vocabulary,
    examples_sha256,
    plan_examples,
    pool_cards,
    query_example,
    query_examples,
    scan_worker_examples,
    solved_steps,
    vocabulary,
    words_plan_examples,
    words_worker_examples,
)
from r2_train.tiny.tiny_models import Schedule, Shape, TextExample, TinyModel, train

NUM_PLAN_TASKS = 40_000
NUM_EVERYDAY_PLAN_TASKS = 120_000
NUM_CHAIN_TASKS = 60_000
NUM_CALCULATIONS = 240_000
NUM_STEPS_PER_KIND = 40_000
EXAMPLES_PER_STEP = 150
"""More worker examples of `everyday` than this for a training step would not be read."""
NUM_MARKET_TASKS = 5_000
NUM_LABELLED_TASKS = 4_000
NUM_VALIDATION_TASKS = 600
NUM_RESAMPLES = 16
NUM_METRIC_TASKS = 1_000


@dataclass(frozen=True)
class Recipe:
    """One model to train."""

    name: str
    role: Literal["worker", "decomposer", "allocator", "baseline"]
    shape: Shape
    schedule: Schedule
    max_operand: int = MAX_OPERAND
    """Largest operand in the examples of a `words` worker."""
    kinds: Mapping[str, float] = field(default_factory=dict)
    """Kinds of step of an `everyday` worker, each with its weight in the draw of examples."""


def _everyday_worker(
    name: str, shape: Shape, steps: int, kinds: str, rates: tuple[float, float] = (3e-3, 0.02)
) -> Recipe:
    """`kinds` repeats a kind that is hard to learn. `rates` are the learning rates of AdamW and Muon."""
    schedule = Schedule(steps, 3072, rates[0], muon_learning_rate=rates[1], num_parts=2)
    return Recipe(name, "worker", shape, schedule, kinds=Counter(kinds.split()))


_TINY, _SMALL = Shape(16, 2, 2, 32), Shape(32, 3, 4, 64)
_ALL_KINDS = "+ + - - * * max max min reverse shift replace replace day day day convert sort sort sort /"
_MORE_HARD_KINDS = (
    "+ + - - - * * max max min min reverse shift replace day day day convert sort sort sort sort sort /"
)


RECIPES: dict[DomainName, tuple[Recipe, ...]] = {
    "words": (
        Recipe("words-5k", "worker", Shape(16, 2, 4, 32), Schedule(3500, 2048, 1e-2), max_operand=99),
        Recipe("words-22k", "worker", Shape(32, 2, 4, 64), Schedule(4500, 2048, 8e-3)),
        Recipe("words-48k", "worker", Shape(48, 2, 4, 96), Schedule(3500, 2048, 7e-3)),
        Recipe("words-280k", "worker", Shape(96, 3, 3, 192), Schedule(3500, 2048, 3e-3)),
        Recipe(
            "words-decomposer", "decomposer", Shape(32, 2, 2, 48), Schedule(3000, 4096, 1e-2, num_parts=2)
        ),
        Recipe("words-allocator", "allocator", Shape(16, 2, 2, 32), Schedule(1000, 4096, 8e-3)),
        Recipe(
            "words-cot",
            "baseline",
            Shape(96, 4, 4, 192),
            Schedule(1500, 4096, 3e-3, muon_learning_rate=0.02, num_parts=2),
        ),
    ),
    "everyday": (
        _everyday_worker("units-6k", _TINY, 1300, "convert", (1e-2, 0.02)),
        _everyday_worker("calendar-6k", _TINY, 1500, "day convert", (1e-2, 0.02)),
        _everyday_worker("arithmetic-33k", _SMALL, 3200, "+ + - - * * *"),
        _everyday_worker("lists-33k", _SMALL, 1100, "max min"),
        _everyday_worker("text-33k", _SMALL, 1900, "reverse shift replace replace"),
        _everyday_worker("calendar-33k", _SMALL, 1300, "day convert"),
        _everyday_worker("general-33k", _SMALL, 1400, _ALL_KINDS),
        _everyday_worker("general-72k", Shape(48, 3, 4, 96), 4000, _ALL_KINDS),
        _everyday_worker("general-170k", Shape(64, 4, 4, 128), 7500, _MORE_HARD_KINDS, (3e-3, 0.02)),
        Recipe(
            "everyday-decomposer",
            "decomposer",
            Shape(32, 2, 4, 64),
            Schedule(6500, 4096, 1e-2, muon_learning_rate=0.02, num_parts=2),
        ),
        Recipe("everyday-allocator", "allocator", Shape(16, 2, 2, 32), Schedule(1200, 4096, 8e-3)),
        Recipe(
            "everyday-cot",
            "baseline",
            Shape(96, 4, 4, 192),
            Schedule(2600, 4096, 3e-3, muon_learning_rate=0.02, num_parts=2),
        ),
    ),
    "scan": (
        Recipe("scan-1k", "worker", Shape(8, 1, 2, 16), Schedule(1500, 2048, 5e-3)),
        Recipe("scan-3k", "worker", Shape(16, 1, 2, 32), Schedule(1500, 2048, 5e-3)),
        Recipe("scan-22k", "worker", Shape(32, 2, 4, 64), Schedule(1500, 2048, 4e-3)),
        Recipe("scan-168k", "worker", Shape(64, 4, 2, 128), Schedule(2000, 2048, 2e-3)),
        Recipe(
            "scan-decomposer",
            "decomposer",
            Shape(32, 2, 2, 32),
            Schedule(1200, 4096, 1e-2, muon_learning_rate=0.02),
        ),
        Recipe("scan-allocator", "allocator", Shape(16, 1, 2, 16), Schedule(500, 2048, 1e-2)),
    ),
}
"""The models of each domain. Workers are in the pool's order, smallest first. A baseline is trained only by
name."""


@dataclass(frozen=True)
class Pretraining:
    """The settings that all models of one invocation share."""

    domain: DomainName
    out: Path
    seed: int
    steps_scale: float
    styles: Styles

    @property
    def pool(self) -> list[str]:
        return [recipe.name for recipe in RECIPES[self.domain] if recipe.role == "worker"]

    def command(self, recipe: Recipe) -> str:
        """The command that trains this model again."""
        scale = "" if self.steps_scale == 1 else f" --steps-scale {self.steps_scale:g}"
        styles = f" --styles {self.styles}" if recipe.role == "decomposer" else ""
        model = f"--domain {self.domain} --only {recipe.name} --seed {self.seed}"
        return f"r2-train pretrain {model}{scale}{styles} --out DIR"


def pretrain(
    domain: DomainName, out: Path, *,
    seed: int = 0, only: str | None = None, steps_scale: float = 1.0, styles: Styles = "mixed",
) -> None:  # fmt: skip
    """Trains the models of a domain, or the one called `only`, and adds each to the manifest.

    Raises: ValueError if the domain has no model of that name.
    """
    disable_progress_bar()
    recipes = [r for r in RECIPES[domain] if r.name == only or (only is None and r.role != "baseline")]
    if not recipes:
        raise ValueError(f"{domain} has no model {only!r}; it has {[r.name for r in RECIPES[domain]]}")
    out.mkdir(parents=True, exist_ok=True)
    settings = Pretraining(domain, out, seed, steps_scale, styles)
    for recipe in recipes:
        _train_one(settings, recipe)
    if recipes[-1].role == "allocator" and domain != "everyday":
        evaluate(domain, out, num_tasks=NUM_METRIC_TASKS)


def evaluate(domain: DomainName, out: Path, *, num_tasks: int) -> None:
    """Prints the routed results on every held-out split and adds them to the manifest."""
    disable_progress_bar()
    torch.set_num_threads(1)
    reports = [report_json(evaluate_router(domain, out, num_tasks, split)) for split in SPLITS[domain]]
    _record(out, "routed", domain, reports)


def _train_one(settings: Pretraining, recipe: Recipe) -> None:
    started_s = time.process_time()
    examples = _examples(settings, recipe)
    known = vocabulary(examples)
    if recipe.kinds:
        known = everyday_worker_vocabulary()
    elif recipe.role == "allocator":
        words_of = market_words() if settings.domain == "everyday" else _allocator_words(settings)
        known = sorted({*known, *words_of})

    steps = max(1, round(recipe.schedule.steps * settings.steps_scale))
    schedule = replace(recipe.schedule, steps=steps)
    tiny = TinyModel.create(recipe.name, recipe.shape, known, settings.seed)
    size = f"{tiny.num_params:,} parameters, {len(examples):,} examples, {schedule.steps} steps"
    print(f"{recipe.name}: {size}", flush=True)
    train(tiny, examples, schedule, settings.seed)
    tiny.save(settings.out)
    metrics = _metrics(settings, recipe, tiny, examples)
    print(f"{recipe.name}: {metrics}", flush=True)
    codec = CHAINS if recipe.name == "everyday-decomposer" else CODEC
    entry = {
        "role": recipe.role,
        "params": tiny.num_params,
        "seed": settings.seed,
        "command": settings.command(recipe),
        "steps": steps,
        "cpu_seconds": round(time.process_time() - started_s),
        "data_sha256": examples_sha256(examples),
        "num_examples": len(examples),
        "codec": codec.name,
        "codec_version": codec.version,
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
    _record(settings.out, "models", recipe.name, entry)
    _record(settings.out, "pools", settings.domain, settings.pool)


def _examples(settings: Pretraining, recipe: Recipe) -> list[TextExample]:
    seed = settings.seed
    match recipe.role, settings.domain:
        case "worker", "everyday":
            size = sum(recipe.kinds.values()) * NUM_STEPS_PER_KIND
            size = min(size, recipe.schedule.steps * EXAMPLES_PER_STEP)
            return everyday_worker_examples(round(size), seed, recipe.kinds)
        case "worker", "words":
            return words_worker_examples(NUM_CALCULATIONS, seed, max_operand=recipe.max_operand)
        case "worker", _:
            return scan_worker_examples(seed)
        case "decomposer", "everyday":
            return everyday_plan_examples(NUM_EVERYDAY_PLAN_TASKS, seed)
        case "decomposer", "words":
            return words_plan_examples(NUM_PLAN_TASKS, seed, settings.styles)
        case "decomposer", _:
            return plan_examples(scan.tasks("train", seed), settings.styles)
        case "allocator", "everyday":
            return everyday_allocation_examples(NUM_MARKET_TASKS, seed)
        case "allocator", _:
            return _allocator_examples(settings)
        case _:
            return chain_examples(NUM_CHAIN_TASKS, seed, settings.domain)


def _allocator_examples(settings: Pretraining) -> list[TextExample]:
    """Reference plans, labelled by solve rates. The tasks that choose the rates' target are not trained
    on."""
    workers = [TinyModel.load(settings.out / name) for name in settings.pool]
    if settings.domain == "scan":
        tasks = list(scan.tasks("train", settings.seed))[::2]
        rates = scan_rates(tasks, workers)
    else:
        problems = words.problems("train", NUM_LABELLED_TASKS, settings.seed)
        rates = words_rates(problems, workers, num_resamples=NUM_RESAMPLES, seed=settings.seed)
        tasks = words.tasks("train", NUM_LABELLED_TASKS, settings.seed)
    n, max_tokens = NUM_VALIDATION_TASKS, MAX_ANSWER_TOKENS[settings.domain]
    target = choose_target(tasks[:n], rates[:n], workers, max_tokens=max_tokens)
    print(f"{settings.domain}: solve-rate target {target}", flush=True)
    pool = pool_cards(settings.pool)
    return [
        allocation_example(task.query, task.reference_plan, cheapest(rows, target, settings.pool), pool)
        for task, rows in zip(tasks[n:], rates[n:], strict=True)
    ]


def _allocator_words(settings: Pretraining) -> set[str]:
    """All words of plans of any style, and all choices. Its labels lack some that come with GRPO."""
    if settings.domain == "words":
        tasks = words.tasks("train", NUM_METRIC_TASKS, settings.seed)
    else:
        tasks = list(scan.tasks("train", settings.seed))
    plans = ((task.query, plan) for task in tasks for plan in task.plans)
    prompts = {CODEC.render_allocate(ask(query), plan, [])[0].text for query, plan in plans}
    choices = {f"@{i}" for i in range(1, len(settings.pool) + 1)}
    return choices.union(*(prompt.split() for prompt in prompts))


def _metrics(
    settings: Pretraining, recipe: Recipe, tiny: TinyModel, examples: Sequence[TextExample]
) -> dict[str, float]:
    """Exact-match rates on held-out tasks; an allocator's is its agreement with (a sample of) its own
    labels."""
    domain, seed = settings.domain, settings.seed
    if recipe.role == "allocator":
        return {"label_agreement": _rate(tiny, examples[:NUM_METRIC_TASKS])}
    if recipe.kinds:
        return everyday_skills(tiny, seed)
    if recipe.role == "baseline":
        return asdict(evaluate_chain(tiny, NUM_METRIC_TASKS, seed, domain))
    tests = {split: held_out_tasks(domain, split, NUM_METRIC_TASKS, seed) for split in SPLITS[domain]}
    if recipe.role == "decomposer":
        codec = CHAINS if domain == "everyday" else CODEC
        plans = {
            split: decompose(tiny, [task.query for task in tasks], codec)[0] for split, tasks in tests.items()
        }
        return {f"exact_plan_{split}": exact_plan_rate(plans[split], tasks) for split, tasks in tests.items()}
    metrics = {f"whole_{split}": _rate(tiny, query_examples(tasks)) for split, tasks in tests.items()}
    if domain == "scan":
        phrases = [query_example(phrase, scan.interpret(phrase)) for phrase in scan.phrases()]
        return metrics | {"phrase": _rate(tiny, phrases)}
    steps = sorted({step for task in tests["test"] for step in solved_steps(task.reference_plan)})
    for name, op in {"add": "+", "subtract": "-", "multiply": "*"}.items():
        metrics[name] = _rate(tiny, [calculation_example(step) for step in steps if f" {op} " in step])
    return metrics


def _rate(tiny: TinyModel, examples: Sequence[TextExample]) -> float:
    return sum(tiny.solves(examples)) / len(examples)


def _record(out: Path, section: str, name: str, entry: object) -> None:
    path = out / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest.setdefault(section, {})[name] = entry
    ordered = {key: manifest[key] for key in ("pools", "models", "routed") if key in manifest}
    path.write_text(json.dumps(ordered, indent=2) + "\n")
