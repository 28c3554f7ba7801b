"""Where a training stage runs: in this process, or on workers of a Ray cluster.

A stage is a function that builds a TRL trainer, trains and saves. It knows neither Ray nor DeepSpeed: what depends on
the place reaches it as a `StageRun`, and it must take all of that:

    def train(config: MyConfig, run: StageRun) -> None:
        trainer = SFTTrainer(..., args=SFTConfig(**run.training_arguments(), max_steps=100), callbacks=[*run.callbacks])
        trainer.train(resume_from_checkpoint=run.resume_argument)
        if run.is_first:
            trainer.model.save_pretrained(run.final)        (under ZeRO-3: `trainer.save_model(run.final)`, on every rank)

`launch(train, config, launch=..., directory=...)` again with the same directory goes on from its newest checkpoint.
Importing this module imports neither Ray nor torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from r2_serve.config import Config
from r2_serve.errors import R2Error

if TYPE_CHECKING:
    from transformers import TrainerCallback

C = TypeVar("C", bound=Config)


class TrainingFailed(R2Error):
    """A stage failed on a worker more often than `max_failures`; says on which rank and why."""


class LaunchConfig(Config):
    """Where a stage runs, on how much, and what happens when a worker dies."""

    launcher: Literal["local", "ray"] = "local"
    """`local`: in this process. `ray`: on workers of a Ray cluster, which may be the one that serves."""
    num_workers: int = Field(default=1, ge=1)
    """Processes that train together; each takes its share of a batch."""
    use_gpu: bool = False
    """Every worker trains on a GPU of its own, in bfloat16; local: on the first one."""
    resources_per_worker: dict[str, float] = Field(default_factory=dict)
    """Ray resources that a worker reserves, such as {"CPU": 4, "train_gpu": 1}; one CPU, and one GPU with `use_gpu`, if not named."""
    deepspeed: Literal["zero2", "zero3"] | Path | None = None
    """A shipped ZeRO configuration or a JSON file; None trains without DeepSpeed."""
    max_failures: int = Field(default=2, ge=0)
    """Times that all workers are started again from the last checkpoint after one of them failed."""
    max_checkpoints: int | None = Field(default=None, ge=1)
    """Newest checkpoints kept; None keeps all, of which `r2-train alternate` then takes the best."""
    storage: str | None = None
    """Where checkpoints go. None: the stage's directory, which every node must see under the same path (one machine, or NFS).
    A URI such as s3://bucket/runs: nodes write to their own disks and upload from there, and `final` comes back at the end."""
    ray_address: str | None = None
    """The cluster; None: `RAY_ADDRESS`, else the one running on this machine."""
    start_timeout_s: int = Field(default=600, ge=1)
    """For the workers to start, which includes waiting for their resources."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers."""

    @model_validator(mode="after")
    def _local_is_one_process(self) -> Self:
        if self.launcher == "local" and (self.num_workers > 1 or self.deepspeed is not None):
            raise ValueError("several workers or DeepSpeed need `launcher: ray` (which runs one worker too)")
        return self


@dataclass(frozen=True)
class StageRun:
    """What a stage gets of the place it runs in, on each worker."""

    directory: Path
    """Of checkpoints and logs."""
    resume_from: Path | None = None
    """The checkpoint to go on from."""
    callbacks: tuple[TrainerCallback, ...] = ()
    """For the trainer: they report checkpoints, and see that DeepSpeed is on."""
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's configuration."""
    use_gpu: bool = False
    rank: int = 0
    world_size: int = 1
    max_checkpoints: int | None = None
    """That the trainer itself has to enforce."""

    @property
    def is_first(self) -> bool:
        """Whether this worker is the one that writes what is written once."""
        return self.rank == 0

    @property
    def final(self) -> Path:
        """Directory of the trained model."""
        return self.directory / "final"

    @property
    def resume_argument(self) -> str | None:
        """`resume_from` as transformers wants it."""
        return None if self.resume_from is None else str(self.resume_from)

    def training_arguments(self) -> dict[str, Any]:
        """The `TrainingArguments` that follow from the place.

        Under DeepSpeed on CPUs `use_cpu` stays off, with which some versions of accelerate would train without DeepSpeed;
        bfloat16, TRL's default, is then refused; and accelerate must take the state that `deepspeed_worker` has set up.
        """
        is_cpu_deepspeed = self.deepspeed is not None and not self.use_gpu
        return {
            "output_dir": str(self.directory),
            "deepspeed": self.deepspeed,
            "use_cpu": not self.use_gpu and self.deepspeed is None,
            "bf16": self.use_gpu,
            "save_total_limit": self.max_checkpoints,
            "accelerator_config": {"use_configured_state": True} if is_cpu_deepspeed else None,
        }


Stage = Callable[[C, StageRun], None]
"""A function of a module (workers import it), not a lambda or a method."""


def launch(stage: Stage[C], config: C, *, launch: LaunchConfig, directory: Path) -> None:
    """Runs `stage` to its end, from the newest checkpoint of `directory` where there is one.

    Raises: TrainingFailed where it failed on a Ray cluster, ConfigError where there is none; local, whatever it raises.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if launch.launcher == "ray":
        from r2_train.launch.ray_stage import run_on_ray

        run_on_ray(stage, config, launch=launch, directory=directory)
        return
    resume_from = newest_checkpoint(directory)
    stage(
        config,
        StageRun(directory, resume_from, use_gpu=launch.use_gpu, max_checkpoints=launch.max_checkpoints),
    )


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete `checkpoint-N` of the highest step; the trainer writes its state last, so one without it was cut short."""
    steps = {
        int(match[1]): path
        for path in directory.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return next((steps[step] for step in sorted(steps, reverse=True) if _is_complete(steps[step])), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
