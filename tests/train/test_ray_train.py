"""Stages launched in this process and on real Ray Train workers, with real TRL, gloo and DeepSpeed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r2_serve import EMBEDDED_CONFIG
from r2_serve.ops.local.cluster import free_port, local_cluster, only
from r2_serve.serve_config import load
from r2_train.config import DataConfig, GrpoConfig, PoolConfig
from r2_train.launch.launch import launch, newest_checkpoint
from r2_train.launch.stage_run import LaunchConfig, TrainingFailed
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.described_pool import described
from r2_train.stages.examples import plan_example, write_examples
from r2_train.stages.grpo import GrpoStage
from r2_train.stages.rewards import Reference
from r2_train.stages.run_log import METRICS, read_metrics
from r2_train.stages.tasks import TaskSplit

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.train

SCAN = "r2-scan"
NUM_MILLIONS = int(os.environ.get("R2_ZERO3_MILLIONS", "60"))
"""Millions of parameters of the model whose memory is measured."""


@pytest.fixture(scope="module")
def grpo() -> ModuleType:
    """The stages. They are imported late, because importing TRL takes many seconds."""
    from tests.support import grpo_stage

    return grpo_stage


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """The embedded SCAN pool, served by the cluster that trains."""
    with local_cluster(only(load(EMBEDDED_CONFIG), [SCAN]), port=free_port(), num_cpus=4):
        yield


def num_changed(before: Path, after: Path) -> int:
    """Tensors of `before` that are not the same in `after`."""
    import torch
    from safetensors.torch import load_file

    old, new = (load_file(directory / "model.safetensors") for directory in (before, after))
    assert old.keys() <= new.keys()
    return sum(not torch.equal(tensor, new[name]) for name, tensor in old.items())


def scan_decomposer_stage(directory: Path) -> GrpoStage:
    """Six steps of the embedded decomposer, rewarded by the served pool through its handles."""
    data = DataConfig(benchmark="scan", num_train=16, num_validation=1)
    pool = described(PoolConfig(virtual_model=SCAN))
    examples = [plan_example(pool, task.id, task.query) for task in TaskSplit.load(data).train]
    trainer = {
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "temperature": 2.0,
        "max_completion_length": 24,
    }
    return GrpoStage(
        module="decomposer",
        base="embedded:scan-decomposer",
        examples=write_examples(directory / "examples.jsonl", examples),
        grpo=GrpoConfig(
            trainer={
                **trainer,
                "per_device_train_batch_size": 4,
                "num_generations": 4,
                "optim": "adamw_torch",
            }
        ),
        pool=PoolConfig(virtual_model=SCAN, reach="serve"),
        data=data,
        reference=Reference(cost_usd=1e-4, critical_path_tokens=10),
        cache=directory / "calls",
    )


def test_grpo_on_the_served_pool_under_zero2_resumes_on_both_workers_after_one_was_killed(
    served: None, grpo: ModuleType, tmp_path: Path
) -> None:
    two = LaunchConfig(launcher="ray", num_workers=2, deepspeed="zero2", max_failures=1)
    stage = grpo.OnServedPool(stage=scan_decomposer_stage(tmp_path), kill_rank_at=(1, 3))
    launch(grpo.train_on_served_pool, stage, launch=two, directory=tmp_path)
    attempts = {
        (rank, attempt): grpo.witnessed(tmp_path, rank, attempt) for rank in (0, 1) for attempt in (0, 1)
    }
    assert len(list((tmp_path / "witness").iterdir())) == 4
    assert {seen.begin["optimizer"] for seen in attempts.values()} == {"DeepSpeedZeroOptimizer"}
    assert len({seen.begin["pid"] for seen in attempts.values()}) == 4
    assert [attempts[1, 0].steps, attempts[0, 1].steps, attempts[1, 1].steps] == [
        [1, 2, 3],
        [3, 4, 5, 6],
        [3, 4, 5, 6],
    ]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-6"
    assert len(list(newest.glob("global_step6/*optim_states.pt"))) == 2
    assert num_changed(grpo.DECOMPOSER, tmp_path / "final") > 0
    rewarded = {row["step"]: row["reward"] for row in read_metrics(tmp_path / METRICS) if "reward" in row}
    assert list(rewarded) == [1, 2, 3, 4, 5, 6] and max(rewarded.values()) > 0.2, (
        "some plan was carried out correctly"
    )
    for rank in (0, 1):
        with CallCache(tmp_path / "calls" / f"calls-{rank}.sqlite") as cache:
            assert cache.spent_usd > 0, "each worker asked the pool"


def test_zero3_on_disks_of_their_own_and_a_second_launch_goes_on(
    served: None, grpo: ModuleType, tmp_path: Path
) -> None:
    """A job that is submitted again: nodes share no disk, and checkpoints come back from the storage."""
    storage, directory = tmp_path / "storage", tmp_path / "run"
    two = LaunchConfig(launcher="ray", num_workers=2, deepspeed="zero3", storage=storage.as_uri())
    launch(grpo.train, grpo.GrpoConfig(max_steps=2, witness=str(directory)), launch=two, directory=directory)
    first = num_changed(grpo.DECOMPOSER, directory / "final")
    shutil.copytree(directory / "final", tmp_path / "first")
    launch(grpo.train, grpo.GrpoConfig(max_steps=4, witness=str(directory)), launch=two, directory=directory)
    assert first > 0 and num_changed(tmp_path / "first", directory / "final") > 0
    for rank in (0, 1):
        assert [grpo.witnessed(directory, rank, attempt).steps for attempt in (0, 1)] == [[1, 2], [3, 4]]
        assert grpo.witnessed(directory, rank, 0).begin["optimizer"] == "DeepSpeedZeroOptimizer_Stage3"
    assert not grpo.witnessed(directory, 0, 1).queries & grpo.witnessed(directory, 1, 1).queries, (
        "each has its own share of the rows"
    )
    (run,) = storage.iterdir()
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert {path.name for path in directory.iterdir()} == {"witness", "final"}


def test_zero3_leaves_half_of_the_model_on_each_of_two_ranks(served: None, tmp_path: Path) -> None:
    from tests.support.zero3_memory import LoadConfig, load, random_model

    whole = random_model(tmp_path / "model", num_millions=NUM_MILLIONS)
    two = LaunchConfig(launcher="ray", num_workers=2, deepspeed="zero3", max_failures=0)
    launch(load, LoadConfig(base=str(tmp_path / "model")), launch=two, directory=tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"memory-{rank}.json").read_text())
        print(f"rank {rank}: {found}, of {whole}")
        assert found["is_divided"]
        assert found["held"] == pytest.approx(whole / 2, rel=0.01)


def test_deepspeed_that_is_silently_off_fails_the_stage_with_rank_and_reason(
    served: None, grpo: ModuleType, tmp_path: Path
) -> None:
    one = LaunchConfig(launcher="ray", deepspeed="zero2", max_failures=0)
    off = {"deepspeed": None, "use_cpu": True, "accelerator_config": None}
    with pytest.raises(
        TrainingFailed, match="rank 0: the config asks for DeepSpeed, but the trainer runs without it"
    ):
        launch(grpo.train, grpo.GrpoConfig(max_steps=1, extra_arguments=off), launch=one, directory=tmp_path)
    assert newest_checkpoint(tmp_path) is None


def test_local_launch_goes_on_from_the_newest_complete_checkpoint(grpo: ModuleType, tmp_path: Path) -> None:
    launch(grpo.train, grpo.GrpoConfig(max_steps=2), launch=LaunchConfig(), directory=tmp_path)
    cut_short = tmp_path / "checkpoint-3"
    shutil.copytree(tmp_path / "checkpoint-2", cut_short)
    (cut_short / "trainer_state.json").unlink()
    launch(grpo.train, grpo.GrpoConfig(max_steps=4), launch=LaunchConfig(), directory=tmp_path)
    assert [grpo.witnessed(tmp_path, 0, attempt).steps for attempt in (0, 1)] == [[1, 2], [3, 4]]
    assert num_changed(tmp_path / "checkpoint-2", tmp_path / "final") > 0
