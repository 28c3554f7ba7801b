"""Run descriptions are read strictly, the shipped ones are valid, and a directory belongs to one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from r2_serve.errors import ConfigError
from r2_serve.lab.domains import scan
from r2_train.config import TrainConfig, load_config
from r2_train.stages.tasks import TaskSplit
from r2_train.trainer_fields import field_names
from tests import ROOT

CONFIGS = ROOT / "r2_train" / "configs"
VALID = "pool: {virtual_model: r2}\ndata: {benchmark: words}\n"
SCAN = {
    "pool": {"virtual_model": "r2-scan"},
    "data": {"benchmark": "scan", "num_train": 50, "num_validation": 20},
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).alternate.num_rounds >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pool: {virtual_model: r2}\ndata: {benchmark: words}\nsearch: {alfa: 0.4}\n",
            "line 3: error: search.alfa: unknown key",
        ),
        ("pool: {virtual_model: r2, reach: http}\ndata: {benchmark: words}\n", "needs it"),
        ("data: {benchmark: chess}\n", "data.benchmark"),
        (
            f"{VALID}decomposer:\n  sft:\n    trainer: {{lerning_rate: 1}}\n",
            "line 5: error: decomposer.sft.trainer.lerning_rate: trl.SFTConfig has no field 'lerning_rate'; "
            "did you mean 'learning_rate'?",
        ),
        (
            f"{VALID}allocator: {{grpo: {{trainer: {{num_generation: 8}}}}}}\n",
            "did you mean 'num_generations'?",
        ),
        (f"{VALID}allocator: {{sft: {{lora: {{rank: 8}}}}}}\n", "peft.LoraConfig has no field 'rank'"),
        ("pool: [", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "line 2: error: seed: the key stands twice"),
        ("", "file"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in error.value.message and message in error.value.message


def test_a_learning_rate_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{VALID}decomposer: {{sft: {{trainer: {{learning_rate: 2e-5}}}}}}\n")
    assert load_config(path).decomposer.sft.trainer == {"learning_rate": 2e-5}


@pytest.mark.train
def test_the_fields_read_from_source_are_those_of_the_classes() -> None:
    import dataclasses

    from peft import LoraConfig
    from trl import GRPOConfig, SFTConfig

    classes = {"trl.SFTConfig": SFTConfig, "trl.GRPOConfig": GRPOConfig, "peft.LoraConfig": LoraConfig}
    for name, kind in classes.items():
        assert field_names(name) == {field.name for field in dataclasses.fields(kind)}


def test_training_and_validation_tasks_are_disjoint_and_hold_no_test_task() -> None:
    from r2_serve.lab.evaluation.benchmarks import load_tasks

    split = TaskSplit.load(TrainConfig.model_validate(SCAN).data)
    train, validation = {task.id for task in split.train}, {task.id for task in split.validation}
    tests = {task.id for name in ("length", "simple") for task in load_tasks("scan", name)}
    assert len(train) == 50 and len(validation) == 20
    assert not train & validation and not (train | validation) & tests


def test_only_the_development_side_of_an_official_file_is_trained_on(tmp_path: Path) -> None:
    from r2_serve.lab.evaluation.benchmarks import load_tasks, split_tasks

    path = tmp_path / "tasks_train_length.txt"
    path.write_text("".join(f"IN: {task.query} OUT: {task.gold}\n" for task in scan.tasks("train")[:40]))
    config = TrainConfig.model_validate(
        {**SCAN, "data": {"benchmark": "scan", "data": str(path), "num_train": 9, "num_validation": 1}}
    )
    split = TaskSplit.load(config.data)
    _, test = split_tasks(load_tasks("scan", path))
    assert test and not {task.id for task in (*split.train, *split.validation)} & {task.id for task in test}


@pytest.mark.parametrize("key", ["output_dir", "seed", "deepspeed", "use_cpu"])
def test_trainer_keys_that_the_run_sets_are_refused_with_the_setting_to_use(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} is not set here: "):
        TrainConfig.model_validate({**SCAN, "allocator": {"grpo": {"trainer": {key: 1}}}})
