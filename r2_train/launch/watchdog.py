"""Ends a training step that never ends, and says which rank waits for what.

A rank that hangs (a pool that does not answer, a broken link) keeps all others waiting in a collective call,
which has no limit of its own on CPUs and half an hour with NCCL. So each rank has a thread that writes where
the rank is, to `ranks/rank-N.txt`. Once a step has lasted too long, it collects what all ranks wrote, prints
it, and ends its process. On a Ray cluster the stage then starts again from the last checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from r2_serve.files import write_whole
from r2_train.launch.stage_run import StageRun

RANKS = "ranks"
STALLED = "stalled.txt"
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: another try may succeed."""
SHOWN_FRAMES = 4
OTHERS_S = 5.0
"""Seconds until a step that is too long on one rank has been noted by the others."""


class Watchdog:
    """Watches the steps of one rank between `start` and `stop`. `step` says that another one began."""

    def __init__(self, run: StageRun, *, end: Callable[[int], object] = os._exit) -> None:
        self._folder, self._rank, self._limit_s, self._end = run.directory, run.rank, run.step_timeout_s, end
        self._thread_id = threading.get_ident()
        self._stopped = threading.Event()
        self._step, self._began_s = 0, time.monotonic()

    def start(self) -> None:
        if self._limit_s is not None:
            (self._folder / RANKS).mkdir(parents=True, exist_ok=True)
            (self._folder / STALLED).unlink(missing_ok=True)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def step(self, number: int) -> None:
        self._step, self._began_s = number, time.monotonic()

    def _watch(self) -> None:
        assert self._limit_s is not None
        pause_s = min(30.0, self._limit_s / 4)
        while not self._stopped.wait(pause_s):
            lasted_s = time.monotonic() - self._began_s
            write_whole(self._folder / RANKS / f"rank-{self._rank}.txt", self._where(lasted_s))
            if lasted_s > self._limit_s and not self._stopped.wait(min(OTHERS_S, self._limit_s)):
                self._report()
                self._end(EXIT_CODE)
                return

    def _where(self, lasted_s: float) -> str:
        """The rank, its step, and the innermost functions of the thread that trains."""
        frame = sys._current_frames().get(self._thread_id)
        frames = traceback.extract_stack(frame)[-SHOWN_FRAMES:] if frame is not None else []
        calls = " < ".join(f"{f.name} ({_short(f.filename)}:{f.lineno})" for f in reversed(frames))
        return f"rank {self._rank}, step {self._step} for {lasted_s:.0f} s, in {calls or 'no function'}"

    def _report(self) -> None:
        files = sorted((self._folder / RANKS).glob("rank-*.txt"), key=lambda path: int(path.stem[5:]))
        found = "\n".join(f"  {path.read_text().strip()}" for path in files)
        text = (
            f"a step has lasted longer than launch.step_timeout_s ({self._limit_s:g} s), so rank "
            f"{self._rank} ends it. Where each rank was:\n{found}\n"
            "A rank that is not in a collective call (all_reduce, all_gather, barrier) is the one that the "
            "others wait for"
        )
        write_whole(self._folder / STALLED, text)
        print(text, file=sys.stderr, flush=True)


def _short(path: str) -> str:
    """The last three parts of a path."""
    return "/".join(Path(path).parts[-3:])
