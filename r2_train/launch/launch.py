"""Runs a training stage to its end, in this process or on a Ray cluster. It imports neither Ray nor torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from r2_train.launch.stage_run import C, LaunchConfig, Stage, StageRun


def launch(stage: Stage[C], config: C, *, launch: LaunchConfig, directory: Path) -> None:
    """Runs `stage`. The same call with the same directory continues from its newest checkpoint.

    Raises: TrainingFailed if the stage failed on a Ray cluster; ConfigError if there is no cluster; with
    `launcher: local`, the error of the stage itself.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if launch.launcher == "ray":
        from r2_train.launch.ray_stage import run_on_ray

        run_on_ray(stage, config, launch=launch, directory=directory)
        return
    run = StageRun(
        directory,
        newest_checkpoint(directory),
        use_gpu=launch.use_gpu,
        max_checkpoints=launch.max_checkpoints,
        step_timeout_s=launch.step_timeout_s,
    )
    stage(config, run)


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete `checkpoint-N` of the highest step; None if there is none."""
    paths = (path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    by_step = sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    return next(filter(_is_complete, by_step), None)


def _is_complete(checkpoint: Path) -> bool:
    """The trainer writes its state last, so a checkpoint without a readable state was cut short."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
