"""The cores that this process was given, and the limit that they set to the threads of torch."""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The CPU time that a container may use: microseconds, or `max`, in each period of microseconds."""


def num_cores() -> int:
    """Cores that this process may run on: those of its affinity, or fewer if its container has a quota."""
    is_bounded = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if is_bounded else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, no quota, or another kind of system
        return cores


def num_threads(wanted: int) -> int:
    """`wanted` threads, but at most one for each core: more threads make every step wait for the others."""
    cores = num_cores()
    if wanted > cores:
        _log.warning("num_threads: %d is more than the cores of this process: using %d", wanted, cores)
    return min(wanted, cores)
