"""Callbacks of a trainer on a Ray Train worker: they report its checkpoints and check how it runs."""

from __future__ import annotations

from pathlib import Path

import ray.train
from accelerate.utils import DeepSpeedOptimizerWrapper
from pydantic import JsonValue
from ray.train import Checkpoint
from ray.train.v2.api.report_config import CheckpointUploadMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r2_serve.errors import ConfigError


class CheckTrainer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Refuses to train if the trainer runs without DeepSpeed or alone, which it would do silently."""

    def __init__(self, *, world_size: int, is_deepspeed: bool) -> None:
        self.world_size, self.is_deepspeed = world_size, is_deepspeed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> None:
        """Raises: ConfigError."""
        optimizer = given["optimizer"]
        if self.is_deepspeed and not isinstance(optimizer, DeepSpeedOptimizerWrapper):
            raise ConfigError(
                "the config asks for DeepSpeed, but the trainer runs without it (its optimizer is "
                f"{type(optimizer).__name__}): make its arguments from `run.training_arguments()`, and do "
                "not override `deepspeed`, `use_cpu` or ACCELERATE_USE_CPU"
            )
        if args.world_size != self.world_size:
            raise ConfigError(
                f"the config asks for {self.world_size} workers, but this trainer takes itself for one of "
                f"{args.world_size}: make its arguments from `run.training_arguments()`"
            )


class ReportCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Calls `ray.train.report` at every save, with the newest value of each logged metric.

    Ray's own `RayTrainReportCallback` copies the whole directory on every rank; this one copies it at most
    once per node. Every rank calls `report`, which is a barrier: no rank leaves before all have written their
    files. A shared directory is the run's storage, so rank 0 names the checkpoint and nothing is copied.
    Otherwise one rank of each node uploads the files of its node (with ZeRO every rank has some) and then
    deletes them.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        context = ray.train.get_context()
        is_mine = context.get_world_rank() == 0 if self.is_shared else context.get_local_rank() == 0
        upload = CheckpointUploadMode.NO_UPLOAD if self.is_shared else CheckpointUploadMode.SYNC
        ray.train.report(
            newest_metrics(state.log_history),
            checkpoint=Checkpoint.from_directory(path) if is_mine else None,
            checkpoint_dir_name=path.name,
            checkpoint_upload_mode=upload,
            delete_local_checkpoint_after_upload=not self.is_shared,
        )


def newest_metrics(log_history: list[dict[str, JsonValue]]) -> dict[str, float]:
    """The last logged value of each number."""
    logged = (item for entry in log_history for item in entry.items())
    return {name: value for name, value in logged if isinstance(value, int | float)}
