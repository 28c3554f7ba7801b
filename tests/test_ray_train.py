"""Stages launched in this process and on real Ray Train workers, with real TRL, gloo and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from r2_serve.local_cluster import LOOPBACK
from r2_train.launch import LaunchConfig, launch, newest_checkpoint
from tests.grpo_stage import DECOMPOSER, GrpoConfig, train, witnessed

pytestmark = pytest.mark.train

STEPS_UNTIL_KILLED, STEPS = 3, 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=4, num_gpus=0, _node_ip_address=LOOPBACK, **options)
    yield
    ray.shutdown()


def weights(directory: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return dict(load_file(directory / "model.safetensors"))


def has_changed(directory: Path) -> bool:
    import torch

    before, after = weights(DECOMPOSER), weights(directory)
    assert before.keys() <= after.keys() | {"lm_head.weight"}
    return any(not torch.equal(before[name], after[name]) for name in before if name in after)


def steps(directory: Path, rank: int, attempt: int) -> list[int]:
    return [line["step"] for line in witnessed(directory, rank, attempt) if line["event"] == "step"]


def queries(directory: Path, rank: int, attempt: int) -> set[str]:
    return {query for line in witnessed(directory, rank, attempt) if line["event"] == "rewarded" for query in line["queries"]}


def test_both_workers_resume_under_zero2_after_one_was_killed(cluster: None, tmp_path: Path) -> None:
    two = LaunchConfig(launcher="ray", num_workers=2, deepspeed="zero2", max_failures=1)
    launch(train, GrpoConfig(max_steps=STEPS, kill_rank_at=(1, STEPS_UNTIL_KILLED)), launch=two, directory=tmp_path)
    for rank in (0, 1):
        first, second = (witnessed(tmp_path, rank, attempt)[0] for attempt in (0, 1))
        assert first["zero"] == second["zero"] == "DeepSpeedZeroOptimizer"
        assert (first["step"], second["step"]) == (0, 2)
        assert first["pid"] != second["pid"]
        assert steps(tmp_path, rank, 1) == [3, 4, 5, 6]
    assert steps(tmp_path, 1, 0) == [1, 2, 3]
    assert len(list((tmp_path / "witness").iterdir())) == 4
    assert not queries(tmp_path, 0, 1) & queries(tmp_path, 1, 1), "each worker has its own share of the rows"
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-6"
    assert sorted(path.name for path in newest.glob("global_step6/*optim_states.pt")) != []
    assert has_changed(tmp_path / "final")
