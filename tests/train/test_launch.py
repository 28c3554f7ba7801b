"""Launch settings, the newest checkpoint and ZeRO configurations. None of it needs Ray or torch."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from r2_serve.config import Config
from r2_serve.errors import ConfigError
from r2_train.launch import zero
from r2_train.launch.launch import launch, newest_checkpoint
from r2_train.launch.stage_run import LaunchConfig, StageRun
from r2_train.launch.watchdog import Watchdog


class Settings(Config):
    """The settings of a stage."""

    word: str


def checkpoint(directory: Path, step: int, state: str | None = "{}") -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_newest_complete_checkpoint_is_by_step_and_skips_what_was_cut_short(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, state=None)
    checkpoint(tmp_path, 12, state='{"global_step": 1')
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == newest


def test_local_launch_gives_the_stage_its_directory_and_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[str, StageRun]] = []
    newest = checkpoint(tmp_path, 3)
    launch(
        lambda config, run: seen.append((config.word, run)),
        Settings(word="hi"),
        launch=LaunchConfig(max_checkpoints=2),
        directory=tmp_path,
    )
    ((word, run),) = seen
    assert (word, run.directory, run.resume_from, run.is_first, run.world_size) == (
        "hi",
        tmp_path,
        newest,
        True,
        1,
    )
    arguments = run.training_arguments()
    assert (
        arguments["use_cpu"],
        arguments["bf16"],
        arguments["deepspeed"],
        arguments["save_total_limit"],
    ) == (True, False, None, 2)


@pytest.mark.parametrize(
    "more", [{"num_workers": 2}, {"deepspeed": "zero2"}, {"max_failure": 1}, {"launcher": "slurm"}]
)
def test_settings_that_cannot_be_met_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LaunchConfig.model_validate(more)


def test_cpu_under_deepspeed_does_not_say_use_cpu_which_would_switch_it_off(tmp_path: Path) -> None:
    arguments = StageRun(tmp_path, deepspeed=zero.read_config("zero2")).training_arguments()
    assert (arguments["use_cpu"], arguments["bf16"]) == (False, False)
    arguments = StageRun(tmp_path, deepspeed=zero.read_config("zero2"), use_gpu=True).training_arguments()
    assert (arguments["use_cpu"], arguments["bf16"], arguments["accelerator_config"]) == (False, True, None)


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_shipped_configs_leave_to_the_trainer_what_it_knows_and_lose_only_streams_on_a_cpu(
    name: str, stage: int
) -> None:
    config = zero.read_config(name)
    assert config["zero_optimization"]["stage"] == stage
    assert "optimizer" not in config and "scheduler" not in config, "DeepSpeed would compile its own"
    cpu = zero.cpu_variant(config)
    assert {
        key
        for key in config["zero_optimization"]
        if config["zero_optimization"][key] != cpu["zero_optimization"].get(key)
    } == {"overlap_comm"}
    assert {key: value for key, value in cpu.items() if key != "zero_optimization"} == {
        key: value for key, value in config.items() if key != "zero_optimization"
    }


def test_offloading_is_dropped_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}))
    assert zero.cpu_variant(zero.read_config(path)) == {
        "zero_optimization": {"stage": 2, "overlap_comm": False}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read"), ("{", "not JSON"), ("[]", "no DeepSpeed configuration"), ("{}", "zero_opt")],
)
def test_a_wrong_deepspeed_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        zero.read_config(path)
    assert str(path) in refused.value.message


def test_step_that_never_ends_is_ended_and_every_rank_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, is_released = threading.Event(), threading.Event()
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank-1.txt").write_text("rank 1, step 7 for 3 s, in all_reduce")
    dog = Watchdog(
        StageRun(tmp_path, rank=0, world_size=2, step_timeout_s=0.02), end=lambda code: ended.set()
    )

    def wait_for_the_pool() -> None:
        dog._thread_id = threading.get_ident()
        dog.step(7)
        is_released.wait(20)

    thread = threading.Thread(target=wait_for_the_pool)
    thread.start()
    dog.start()
    assert ended.wait(20)
    is_released.set()
    thread.join()
    text = (tmp_path / "stalled.txt").read_text()
    assert "rank 0, step 7" in text and "wait_for_the_pool" in text
    assert "rank 1, step 7 for 3 s, in all_reduce" in text
    assert "step_timeout_s (0.02 s)" in capsys.readouterr().err


def test_step_that_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    ended = threading.Event()
    dog = Watchdog(StageRun(tmp_path, step_timeout_s=60), end=lambda code: ended.set())
    dog.start()
    dog.step(1)
    dog.stop()
    assert not ended.is_set() and not (tmp_path / "stalled.txt").exists()
