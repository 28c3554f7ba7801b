"""A stage on a Ray cluster: a `TorchTrainer` whose workers start again from the last checkpoint if one dies.

The run's directory is also Ray Train's, which keeps its list of reported checkpoints there. So the same call
continues the run after the driver died.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypedDict

import ray
import ray.train
from pydantic import JsonValue
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from r2_serve.errors import ConfigError
from r2_train.launch import zero
from r2_train.launch.stage_run import C, LaunchConfig, Stage, StageRun, TrainingFailed
from r2_train.launch.watchdog import STALLED

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
MAX_REASON_CHARS = 2_000


class WorkerTask(TypedDict, Generic[C]):
    """What Ray Train passes to each worker."""

    stage: Stage[C]
    config: C
    launch: LaunchConfig
    directory: Path


def run_on_ray(stage: Stage[C], config: C, *, launch: LaunchConfig, directory: Path) -> None:
    """Runs `stage` on `launch.num_workers` workers. Raises: TrainingFailed, ConfigError."""
    if launch.deepspeed is not None:
        zero.read_config(launch.deepspeed)  # a wrong file is an error here, before any worker starts
    os.environ.setdefault(START_TIMEOUT, str(launch.start_timeout_s))  # Ray Train reads it from here only
    with _connected(launch.ray_address):
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=WorkerTask(stage=stage, config=config, launch=launch, directory=directory),
            torch_config=TorchConfig(backend="nccl" if launch.use_gpu else "gloo"),
            scaling_config=_scaling_config(launch),
            run_config=_run_config(launch, directory),
        )
        try:
            trainer.fit()
        except TrainingFailedError as e:
            stalled = directory / STALLED
            more = f"\n{stalled.read_text()}" if stalled.exists() else ""
            raise TrainingFailed(f"training in {directory} failed: {_reason(e)}{more}") from e
        if launch.storage is not None:
            _fetch_final(trainer.run_config, directory)


def _scaling_config(launch: LaunchConfig) -> ScalingConfig:
    return ScalingConfig(
        num_workers=launch.num_workers,
        use_gpu=launch.use_gpu,
        resources_per_worker=launch.resources_per_worker or None,
        placement_strategy="PACK",
    )


def _run_config(launch: LaunchConfig, directory: Path) -> RunConfig:
    """The run's storage is `directory` itself, or a place of its own under `launch.storage`."""
    run_id = f"{directory.name}-{hashlib.sha256(str(directory).encode()).hexdigest()[:12]}"
    return RunConfig(
        name=directory.name if launch.storage is None else run_id,
        storage_path=str(directory.parent) if launch.storage is None else launch.storage,
        failure_config=FailureConfig(max_failures=launch.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=launch.max_checkpoints),
        worker_runtime_env={"env_vars": _worker_environment(launch, run_id)},
    )


def _worker_environment(launch: LaunchConfig, run_id: str) -> dict[str, str]:
    """Compiled extensions have a directory of their own for each run, so that stale locks in it may be
    deleted."""
    extensions = Path(tempfile.gettempdir()) / f"r2-torch-extensions-{os.getuid()}" / run_id
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(launch.resources_per_worker.get("CPU", 1)))),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(extensions),
    }
    if launch.deepspeed is not None:
        environment |= {"ACCELERATE_USE_CPU": "false"} | ({} if launch.use_gpu else {"DS_ACCELERATOR": "cpu"})
    return environment | launch.env


def _train_worker(given: WorkerTask[C]) -> None:
    """The function that each worker runs."""
    from r2_train.launch.checkpoints import CheckTrainer, ReportCheckpoints

    launch = given["launch"]
    is_shared = launch.storage is None
    context = ray.train.get_context()
    deepspeed = _deepspeed(launch)
    check = CheckTrainer(world_size=context.get_world_size(), is_deepspeed=deepspeed is not None)
    with _local(ray.train.get_checkpoint()) as resume_from:
        run = StageRun(
            given["directory"] if is_shared else Path(context.get_storage().local_working_directory),
            resume_from,
            callbacks=(check, ReportCheckpoints(is_shared=is_shared)),
            deepspeed=deepspeed,
            use_gpu=launch.use_gpu,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            step_timeout_s=launch.step_timeout_s,
        )
        given["stage"](given["config"], run)
    if run.is_first and not is_shared:
        _store_final(run.final)


def _deepspeed(launch: LaunchConfig) -> dict[str, JsonValue] | None:
    """Starts DeepSpeed if the configuration asks for it. Returns DeepSpeed's configuration for the
    trainer."""
    if launch.deepspeed is None:
        return None
    from r2_train.launch.deepspeed_worker import start_deepspeed

    start_deepspeed(use_gpu=launch.use_gpu)
    config = zero.read_config(launch.deepspeed)
    return config if launch.use_gpu else zero.cpu_variant(config)


@contextlib.contextmanager
def _local(checkpoint: Checkpoint | None) -> Iterator[Path | None]:
    """The checkpoint's own directory if it lies on this machine's disks, else a copy (one per node)."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as path:
        yield Path(path)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connects to a cluster. An existing connection of this process is used and stays open."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address or "auto")
    except ConnectionError as e:
        raise ConfigError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS') or 'this machine'}: start one "
            "(`ray start --head`), set `ray_address`, or train with `launcher: local` "
            f"({str(e).splitlines()[0]})"
        ) from e
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: TrainingFailedError) -> str:
    """The ranks that failed, each with its error in one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)[-MAX_REASON_CHARS:]
    return "; ".join(f"rank {rank}: {_last_line(failure)}" for rank, failure in sorted(failures.items()))


def _last_line(failure: Exception) -> str:
    """The exception alone: Ray puts the worker's whole traceback into the text, and the exception is its last
    line."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1][:MAX_REASON_CHARS] if lines else type(failure).__name__


def _store_final(final: Path) -> None:
    """Copies `final` from the disk of rank 0's node to the run's storage."""
    import pyarrow.fs

    storage = ray.train.get_context().get_storage()
    target = f"{storage.experiment_fs_path}/{final.name}"
    storage.storage_filesystem.create_dir(target)
    pyarrow.fs.copy_files(str(final), target, destination_filesystem=storage.storage_filesystem)


def _fetch_final(run_config: RunConfig, directory: Path) -> None:
    """Copies `final` from the run's storage to `directory` on this machine."""
    import pyarrow.fs

    (directory / "final").mkdir(exist_ok=True)
    filesystem, path = pyarrow.fs.FileSystem.from_uri(run_config.storage_path)
    source = f"{path}/{run_config.name}/final"
    pyarrow.fs.copy_files(source, str(directory / "final"), source_filesystem=filesystem)
