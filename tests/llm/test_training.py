"""A real chat model goes through the whole pipeline with LoRA, and trains on two workers under ZeRO-2."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from r2_serve.adapters import read_adapter
from r2_train.config import TrainConfig
from r2_train.launch.launch import launch
from r2_train.launch.stage_run import LaunchConfig
from r2_train.publish import write_module
from r2_train.run import TrainingRun
from r2_train.stages.alternate import half_round
from r2_train.stages.examples import write_examples
from r2_train.stages.run_log import METRICS, read_metrics
from r2_train.stages.sft import SftStage
from r2_train.stages.sft import run as sft_stage
from tests import ROOT

pytestmark = [pytest.mark.llm, pytest.mark.slow]


EXAMPLE = {
    "query": "Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?",
    "plan": {"subtasks": [{"id": 1, "text": "3 * 9"}, {"id": 2, "text": "#1 + 12", "depends_on": [1]}]},
}


def with_an_example(folder: Path) -> Path:
    """The config of the benchmark with prompts that show a plan."""
    prompts = yaml.safe_load((ROOT / "benchmarks/smollm2/prompts.yaml").read_text())
    (folder / "prompts.yaml").write_text(yaml.safe_dump({**prompts, "examples": [EXAMPLE]}))
    config = (ROOT / "benchmarks/smollm2/serve_config.yaml").read_text()
    path = folder / "serve_config.yaml"
    path.write_text(config.replace("benchmarks/smollm2/prompts.yaml", str(folder / "prompts.yaml")))
    return path


@pytest.fixture
def run(smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """The run of `benchmarks/smollm2_words.py` with two steps of SFT and one of GRPO.

    The prompts show an example, because a model that has learnt for two steps plans nothing without one.
    """
    monkeypatch.chdir(ROOT)
    raw: dict[str, Any] = yaml.safe_load((ROOT / "benchmarks/smollm2/train.yaml").read_text())
    raw["pool"]["serve_config"] = str(with_an_example(tmp_path))
    raw["data"] |= {"num_train": 8, "num_validation": 2}
    raw["decomposer"]["sft"]["trainer"]["per_device_train_batch_size"] = 2
    raw["decomposer"]["sft"]["trainer"] |= {"max_steps": 2, "logging_steps": 1}
    raw["decomposer"]["grpo"]["trainer"] |= {
        "max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 60,
    }  # fmt: skip
    return TrainingRun(TrainConfig.model_validate(raw), tmp_path, Console(quiet=True))


def losses(directory: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(directory / METRICS) if "loss" in row]


def test_pipeline_trains_a_lora_that_can_be_published(run: TrainingRun, tmp_path: Path) -> None:
    assert asyncio.run(run.collect()).num_kept > 4
    asyncio.run(run.search())
    run.sft("allocator")
    trained = run.sft("decomposer")
    assert json.loads((trained / "adapter_config.json").read_text())["r"] == 16
    assert len(losses(trained.parent)) == 2
    rows = asyncio.run(half_round(run, "decomposer"))
    assert [row.module for row in rows] == [None, "decomposer"]
    assert all(row.score.num_failed == 0 for row in rows)
    written = write_module(run, "decomposer", "dec-0001", tmp_path / "adapters")
    manifest = read_adapter(written)
    assert (manifest.kind, manifest.base, manifest.codec) == ("lora", "smollm2", "instruct")
    assert manifest.prompts_sha256 is not None


def test_two_workers_train_a_lora_under_zero_2(run: TrainingRun, smollm2: str, tmp_path: Path) -> None:
    import ray

    asyncio.run(run.collect())
    examples = write_examples(tmp_path / "examples.jsonl", run.sft_examples("decomposer"))
    sft = run.config.decomposer.sft
    stage = SftStage(
        examples=examples,
        base=smollm2,
        sft=sft.model_copy(update={"trainer": {**sft.trainer, "per_device_train_batch_size": 1}}),
    )
    ray.init(address="local", num_cpus=2, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        two = LaunchConfig(launcher="ray", num_workers=2, deepspeed="zero2")
        launch(sft_stage, stage, launch=two, directory=tmp_path / "zero2")
    finally:
        ray.shutdown()
    assert (tmp_path / "zero2" / "final" / "adapter_model.safetensors").is_file()
    assert len(losses(tmp_path / "zero2")) == 2
