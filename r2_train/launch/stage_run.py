"""A training stage, and what it is given by the place where it runs.

A stage is a function that builds a TRL trainer, trains and saves. It knows neither Ray nor DeepSpeed. It
takes everything that depends on the place from its `StageRun`:

    def train(config: MyConfig, run: StageRun) -> None:
        args = SFTConfig(**run.training_arguments(), max_steps=100)
        trainer = SFTTrainer(..., args=args, callbacks=[*run.callbacks])
        trainer.train(resume_from_checkpoint=run.resume_argument)
        if run.is_first:
            trainer.model.save_pretrained(run.final)

Under ZeRO-3 every rank calls `trainer.save_model(run.final)` instead of the last two lines.

This module imports neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypedDict, TypeVar

from pydantic import Field, JsonValue, model_validator

from r2_serve.config import Config
from r2_serve.errors import R2Error

if TYPE_CHECKING:
    from transformers import TrainerCallback

C = TypeVar("C", bound=Config)


class TrainingFailed(R2Error):
    """A stage failed on a worker more often than `max_failures` allows. The message says on which rank and
    why."""


class LaunchConfig(Config):
    """The place where a stage runs, the number of workers, and what happens when a worker dies."""

    launcher: Literal["local", "ray"] = "local"
    """`local`: in this process. `ray`: on workers of a Ray cluster, which may be the cluster that serves."""
    num_workers: int = Field(default=1, ge=1)
    """Number of processes that train together. Each takes its share of a batch."""
    use_gpu: bool = False
    """Each worker trains in bfloat16 on a GPU of its own; `launcher: local` takes the first GPU."""
    resources_per_worker: dict[str, float] = Field(default_factory=dict)
    """Ray resources that a worker reserves, such as {"CPU": 4, "train_gpu": 1}. The default is one CPU, and
    one GPU if
    `use_gpu` is set."""
    gpu_memory_gib: float = Field(default=80.0, gt=0)
    """Memory of each worker's GPU, against which `r2-train plan` checks the stages. An H100 has 80."""
    deepspeed: Literal["zero2", "zero3"] | Path | None = None
    """A shipped ZeRO configuration or a JSON file. None trains without DeepSpeed."""
    max_failures: int = Field(default=2, ge=0)
    """How often all workers start again from the last checkpoint after a worker failed."""
    max_checkpoints: int | None = Field(default=None, ge=1)
    """Number of newest checkpoints that are kept. None keeps all; `r2-train alternate` then takes the best of
    them."""
    storage: str | None = None
    """Place of the checkpoints. None: the stage's directory, which every node must see under the same path
    (one machine, or NFS). A URI such as s3://bucket/runs: nodes write to their own disks and upload from
    there, and `final` comes back at the end."""
    ray_address: str | None = None
    """Address of the cluster. None: `RAY_ADDRESS`, or else the cluster that runs on this machine."""
    step_timeout_s: float | None = Field(default=3600.0, gt=0)
    """Seconds after which a step that has not ended is ended, with a list of what each rank was doing. None
    waits for ever."""
    start_timeout_s: int = Field(default=600, ge=1)
    """Seconds until all workers must have started. They include the wait for resources."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers."""

    @model_validator(mode="after")
    def _local_is_one_process(self) -> Self:
        if self.launcher == "local" and (self.num_workers > 1 or self.deepspeed is not None):
            raise ValueError("several workers or DeepSpeed need `launcher: ray` (which runs one worker too)")
        return self


class TrainingArguments(TypedDict):
    """The fields of transformers' `TrainingArguments` that follow from the place."""

    output_dir: str
    deepspeed: dict[str, JsonValue] | None
    use_cpu: bool
    bf16: bool
    save_total_limit: int | None
    accelerator_config: dict[str, bool] | None


@dataclass(frozen=True)
class StageRun:
    """What a stage gets from the place where it runs, on each worker."""

    directory: Path
    """Directory of checkpoints and logs."""
    resume_from: Path | None = None
    """Checkpoint that training continues from; None starts anew."""
    callbacks: tuple[TrainerCallback, ...] = ()
    """Callbacks for the trainer. They report checkpoints and check that DeepSpeed is on."""
    deepspeed: dict[str, JsonValue] | None = None
    """DeepSpeed's configuration; None trains without it."""
    use_gpu: bool = False
    rank: int = 0
    world_size: int = 1
    max_checkpoints: int | None = None
    """Number of checkpoints that the trainer itself keeps; None keeps all."""
    step_timeout_s: float | None = None
    """Seconds after which `launch.watchdog` ends a step; None never ends one."""

    @property
    def is_first(self) -> bool:
        """True on the worker that writes files of which there is only one."""
        return self.rank == 0

    @property
    def final(self) -> Path:
        """Directory of the trained model."""
        return self.directory / "final"

    @property
    def resume_argument(self) -> str | None:
        """`resume_from` in the form that transformers takes."""
        return None if self.resume_from is None else str(self.resume_from)

    def training_arguments(self) -> TrainingArguments:
        """The `TrainingArguments` that follow from the place.

        Under DeepSpeed on CPUs `use_cpu` stays off, because some versions of accelerate would then train
        without DeepSpeed. Without `use_cpu`, bfloat16 (TRL's default) is refused, and accelerate must take
        the state that
        `deepspeed_worker` has set up.
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
"""A stage is a function of a module, because workers import it; a lambda or a method does not work."""
