"""What a trainer on a Ray Train worker calls back: its checkpoints are reported, and it is seen to run as was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.train
from accelerate.utils import DeepSpeedOptimizerWrapper
from ray.train import Checkpoint
from ray.train.v2.api.report_config import CheckpointUploadMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r2_serve.errors import ConfigError


class CheckTrainer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Refuses to train where the trainer runs without DeepSpeed or alone: both happen without a word."""

    def __init__(self, *, world_size: int, is_deepspeed: bool) -> None:
        self.world_size, self.is_deepspeed = world_size, is_deepspeed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Raises: ConfigError."""
        optimizer = given["optimizer"]
        if self.is_deepspeed and not isinstance(optimizer, DeepSpeedOptimizerWrapper):
            raise ConfigError(
                f"DeepSpeed was asked for, but the trainer runs without it (its optimizer is {type(optimizer).__name__}): make its "
                "arguments of `run.training_arguments()`, and override neither `deepspeed` nor `use_cpu` nor ACCELERATE_USE_CPU"
            )
        if args.world_size != self.world_size:
            raise ConfigError(
                f"{self.world_size} workers were asked for, but this trainer takes itself for one of {args.world_size}: make its "
                "arguments of `run.training_arguments()`"
            )


class ReportCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """`ray.train.report` at every save, with the newest value of each metric logged.

    Ray's own `RayTrainReportCallback` copies the whole directory on every rank; here it is copied at most once per node.
    Every rank calls it, as it is a barrier: none leaves before all have written their files. Where the directory is
    shared it is the run's storage, so rank 0 names the checkpoint and nothing is copied; else one rank of each node
    uploads what its node wrote (with ZeRO every rank has files of its own), and then deletes it.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        context = ray.train.get_context()
        is_mine = context.get_world_rank() == 0 if self.is_shared else context.get_local_rank() == 0
        ray.train.report(
            newest_metrics(state.log_history),
            checkpoint=Checkpoint.from_directory(path) if is_mine else None,
            checkpoint_dir_name=path.name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
            if self.is_shared
            else CheckpointUploadMode.SYNC,
            delete_local_checkpoint_after_upload=not self.is_shared,
        )


def newest_metrics(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each number logged."""
    return {
        name: value
        for entry in log_history
        for name, value in entry.items()
        if isinstance(value, int | float)
    }
