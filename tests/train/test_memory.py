"""`r2-train plan` computes what a stage holds, and refuses what does not fit the card."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.errors import ConfigError
from r2_train.cli import app
from r2_train.config import load_config
from r2_train.memory import KNOWN, StageMemory, plan_of, shape_of
from tests import EMBEDDED, ROOT

REFERENCE = ROOT / "r2_train" / "configs" / "reference-7b.yaml"
BASE = "Qwen/Qwen2.5-7B-Instruct"


def called(*more: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", "-c", str(REFERENCE), *more])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("name", "published"),
    [(BASE, 7_615_616_512), ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
     ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248)],
)  # fmt: skip
def test_parameters_counted_from_a_shape_are_those_published(name: str, published: int) -> None:
    assert KNOWN[name].num_parameters == pytest.approx(published, rel=0.002)


def test_parameters_of_a_checkpoint_are_counted_from_its_config() -> None:
    assert shape_of("embedded:words-280k").num_parameters == pytest.approx(280_000, rel=0.05)
    assert shape_of(str(EMBEDDED / "words-280k")) == shape_of("embedded:words-280k")
    with pytest.raises(ConfigError, match="download it"):
        shape_of("someone/unknown")


def test_reference_run_fits_the_card_that_it_names_and_no_card_of_48_gib() -> None:
    code, said = called()
    assert code == 0 and "no" not in said.split("fits")[-1], said
    code, said = called("--gpu-memory", "48")
    assert code == 1
    assert "decomposer grpo: vLLM's share of 14.4 GiB is less than its weights" in said


def memory(**trainer: object) -> StageMemory:
    config = load_config(REFERENCE)
    own = config.decomposer.grpo
    changed = own.model_copy(update={"trainer": {**own.trainer, **trainer}})
    module = config.decomposer.model_copy(update={"grpo": changed})
    plan = plan_of(config.model_copy(update={"decomposer": module}), {"decomposer": BASE, "allocator": BASE})
    return next(stage for stage in plan if (stage.module, stage.stage) == ("decomposer", "grpo"))


def test_each_remedy_that_a_fault_names_lowers_the_peak() -> None:
    usual = memory().total
    assert memory(per_device_train_batch_size=1).total < usual
    assert memory(vllm_enable_sleep_mode=True).total < usual
    assert memory(gradient_checkpointing=False).total > usual
    assert memory(vllm_tensor_parallel_size=2).rollouts.needed == pytest.approx(memory().rollouts.needed / 2)


def test_run_without_a_checkpoint_to_train_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "-c", str(tmp_path / "none.yaml")])
    assert result.exit_code != 0 and "Traceback" not in result.output
