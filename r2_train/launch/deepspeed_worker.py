"""DeepSpeed on a worker: started before the trainer's arguments are made."""

from __future__ import annotations

import os
from pathlib import Path

from accelerate import PartialState


def start_deepspeed(*, use_gpu: bool) -> None:
    """Joins DeepSpeed, and on a CPU accelerate, to the process group that Ray Train made.

    On a CPU DeepSpeed's shared-memory all-reduce would be compiled here, for a minute and by all workers at once, which
    hangs the next run where one of them is killed; gloo does without it.
    """
    _drop_stale_locks(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    import deepspeed

    if not use_gpu:
        deepspeed.ops.__compatible_ops__ = {
            "deepspeed_shm_comm": False
        }  # set whole: reading it first would try every compiler
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", verbose=False)
    if not use_gpu:
        _configure_accelerate()


def _configure_accelerate() -> None:
    """Tells accelerate that DeepSpeed runs over gloo. transformers cannot: without a GPU accelerate 1.15 then finds no
    backend and takes each worker for the only one, so that all of them train on the same rows."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]


def _drop_stale_locks(directory: Path) -> None:
    """torch waits for ever for a lock file of a compiler that was killed. The directory is this run's own, and whoever
    held a lock in it ended with the worker group before this one."""
    for lock in directory.glob("**/lock"):
        lock.unlink(missing_ok=True)
