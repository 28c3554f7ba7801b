"""Starts DeepSpeed on a worker, before the trainer's arguments are made."""

from __future__ import annotations

import os
from pathlib import Path

from accelerate import PartialState


def start_deepspeed(*, use_gpu: bool) -> None:
    """Joins DeepSpeed, and on a CPU accelerate too, to the process group that Ray Train made.

    On a CPU, DeepSpeed would compile its shared-memory all-reduce here. That takes a minute on all workers at
    once, and the next run hangs if a worker is killed meanwhile. Gloo does not need it, so it is switched
    off.
    """
    _drop_stale_locks(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    import deepspeed

    if not use_gpu:
        # The whole mapping is replaced: reading the old one would try every compiler.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", verbose=False)
    if not use_gpu:
        _configure_accelerate()


def _configure_accelerate() -> None:
    """Tells accelerate that DeepSpeed runs over gloo, which transformers cannot do.

    Without a GPU, accelerate 1.15 finds no backend and takes each worker for the only one, so that all of
    them would train on the same rows.
    """
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]


def _drop_stale_locks(directory: Path) -> None:
    """Deletes the lock files of killed compilers, for which torch would wait for ever.

    The directory belongs to this run alone, and every holder of a lock in it ended with the previous worker
    group.
    """
    for lock in directory.glob("**/lock"):
        lock.unlink(missing_ok=True)
