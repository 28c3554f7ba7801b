"""Real SFT and GRPO of tiny modules on the embedded SCAN pool: results, files, and nothing done twice."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r2_serve.adapters import read_adapter
from r2_train.config import Module, TrainConfig
from r2_train.launch.launch import launch
from r2_train.launch.stage_run import LaunchConfig
from r2_train.publish import write_module
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import alternate
from r2_train.stages.curves import draw_curves
from r2_train.stages.examples import Example, allocation_example, write_examples
from r2_train.stages.run_log import METRICS, read_metrics
from r2_train.stages.sft import SftStage, tokenized
from r2_train.stages.sft import run as sft_stage
from tests import EMBEDDED

pytestmark = [pytest.mark.train, pytest.mark.smoke]

QUIET = Console(quiet=True)
SCAN: dict[str, Any] = {
    "pool": {"virtual_model": "r2-scan"},
    "data": {"benchmark": "scan", "num_train": 64, "num_validation": 32},
    "allocator": {
        "sft": {"fresh": True},
        "grpo": {
            "reward": {"cost": 1.0},
            "trainer": {
                "max_steps": 24, "save_steps": 12, "per_device_train_batch_size": 128,
                "learning_rate": 5e-3, "max_completion_length": 9,
            },
        },
    },
    "alternate": {"num_rounds": 1, "order": ["allocator"], "cost_weight": 1.0},
}  # fmt: skip


def run_in(tmp_path: Path, **changed: Any) -> TrainingRun:
    return TrainingRun(TrainConfig.model_validate({**SCAN, **changed}), tmp_path, QUIET)


def allocations(run: TrainingRun) -> list[Example]:
    """Examples whose models are drawn at random, so that only the form can be learned."""
    from r2_serve.lab.domains import scan

    draw = random.Random(0)

    pool = run.described
    plans = [(task, scan.reference_plan(task.query)) for task in run.tasks.train]
    return [
        allocation_example(pool, task.id, task.query, plan, draw.choices(pool.pool, k=len(plan.subtasks)))
        for task, plan in plans
    ]


def sft_of(run: TrainingRun, examples: list[Example], **trainer: Any) -> Path:
    directory = run.directory / "allocator" / "sft"
    config = run.config.allocator.sft.model_copy(
        update={"trainer": {"per_device_train_batch_size": 32, **trainer}}
    )
    stage = SftStage(
        examples=write_examples(directory / "examples.jsonl", examples),
        base="embedded:scan-allocator",
        sft=config,
    )
    launch(sft_stage, stage, launch=LaunchConfig(), directory=directory)
    return directory / "final"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingRun, Pair]:
    """An allocator that learned to choose at random by SFT, and was then trained by GRPO."""
    run = run_in(tmp_path_factory.mktemp("run"))
    random_one = sft_of(run, allocations(run), max_steps=60, learning_rate=1e-2)
    decomposer = EMBEDDED / "scan-decomposer"
    pair, _ = asyncio.run(alternate(run, {"decomposer": decomposer, "allocator": random_one}))
    return run, pair


def test_sft_learns_the_target_and_nothing_of_the_prompt(trained: tuple[TrainingRun, Pair]) -> None:
    from r2_train.stages.model_files import load_tokenizer

    run, _ = trained
    example = allocations(run)[0]
    row = tokenized(example, load_tokenizer(str(run.directory / "allocator" / "sft" / "final")))
    assert example.target is not None
    num_target = len(example.target.split()) + 1
    assert row["completion_mask"] == [0] * (len(row["input_ids"]) - num_target) + [1] * num_target
    losses = [
        entry["loss"]
        for entry in read_metrics(run.directory / "allocator" / "sft" / METRICS)
        if "loss" in entry
    ]
    assert losses[-1] < losses[0] / 2, "who answers is drawn at random, but that it is one of four is learned"


def test_grpo_finds_models_that_are_right_and_cheap(trained: tuple[TrainingRun, Pair]) -> None:
    run, _ = trained
    before, after = (row.score for row in _rows(run))
    assert after.worker_cost_ratio < before.worker_cost_ratio / 2
    assert after.accuracy > 0.8
    rewards = [
        row["reward"]
        for row in read_metrics(run.directory / "rounds" / "01-allocator" / METRICS)
        if "reward" in row
    ]
    assert len(rewards) == 24 and sum(rewards[-6:]) > sum(rewards[:6])


def test_no_engine_outlives_its_pool(trained: tuple[TrainingRun, Pair]) -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name == "transformers-engine"]


def test_a_finished_half_round_is_not_trained_again(trained: tuple[TrainingRun, Pair]) -> None:
    run, pair = trained
    metrics = run.directory / "rounds" / "01-allocator" / METRICS
    before = metrics.read_bytes()
    start: Pair = {
        "decomposer": EMBEDDED / "scan-decomposer",
        "allocator": run.directory / "allocator" / "sft" / "final",
    }
    again, rows = asyncio.run(alternate(TrainingRun(run.config, run.directory, QUIET), start))
    assert again == pair and len(rows) == 2 and metrics.read_bytes() == before


def test_curves_and_tensorboard_are_written(trained: tuple[TrainingRun, Pair]) -> None:
    run, _ = trained
    picture = draw_curves(run.directory)
    assert picture is not None and picture.read_bytes().startswith(b"\x89PNG")
    assert list((run.directory / "rounds" / "01-allocator" / "tensorboard").glob("events.*"))


def test_the_best_module_becomes_an_adapter_that_serving_accepts(
    trained: tuple[TrainingRun, Pair], tmp_path: Path
) -> None:
    run, _ = trained
    manifest = read_adapter(write_module(run, "allocator", "alloc-0001", tmp_path))
    assert (manifest.base, manifest.module, manifest.kind, manifest.codec) == (
        "scan-allocator",
        "allocator",
        "full",
        "compact",
    )
    assert manifest.data_sha256 == run.tasks.sha256 and manifest.metrics["accuracy"] > 0.9


@pytest.mark.slow
def test_a_lora_is_trained_by_sft_and_goes_on_by_grpo(tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    sft = {"lora": lora, "trainer": {"max_steps": 4, "per_device_train_batch_size": 8}}
    grpo = {
        "trainer": {
            "max_steps": 2,
            "save_steps": 2,
            "per_device_train_batch_size": 16,
            "max_completion_length": 9,
        }
    }
    run = run_in(tmp_path, allocator={"sft": sft, "grpo": grpo})
    start = run.config.allocator.sft
    directory = tmp_path / "allocator" / "sft"
    stage = SftStage(
        examples=write_examples(directory / "examples.jsonl", allocations(run)),
        base="embedded:scan-allocator",
        sft=start,
    )
    launch(sft_stage, stage, launch=LaunchConfig(), directory=directory)
    assert (directory / "final" / "adapter_model.safetensors").exists() and not (
        directory / "final" / "model.safetensors"
    ).exists()
    decomposer = EMBEDDED / "scan-decomposer"
    pair: dict[Module, Path] = {"decomposer": decomposer, "allocator": directory / "final"}
    _, rows = asyncio.run(alternate(run, pair))
    assert len(rows) == 2 and rows[1].score.accuracy > 0.5
    assert read_adapter(write_module(run, "allocator", "alloc-0001", tmp_path / "adapters")).kind == "lora"


def _rows(run: TrainingRun) -> list[Any]:
    from r2_serve.lab.jsonl import read_jsonl
    from r2_train.stages.alternate import ROUNDS, RoundRow

    return list(read_jsonl(run.directory / ROUNDS, RoundRow))
