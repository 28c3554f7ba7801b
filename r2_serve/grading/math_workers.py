"""Runs `math_compare` in worker processes that can be killed.

A comparison cannot run in the server's process: no exception interrupts CPython while it multiplies out
`10^{10^{10}}`. So each one runs in one of a few spawned processes. A process that exceeds its time is killed
and replaced, and the others continue. Pebble provides this pool: it kills on timeout, which
concurrent.futures cannot, and replaces dead workers.

As with every spawned process, a script that grades needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r2_serve.grading.math_compare import Relation

_WORKER_MEMORY_BYTES = 4 << 30
"""Address space of one worker: sympy needs less than 1 GiB, and some comparisons would take everything."""


class MathTimeout(Exception):
    """The comparison did not finish in time, or its worker process died, for example of its memory limit."""


class MathWorkers:
    """A pool of comparing processes, started with the first comparison."""

    def __init__(self, num_workers: int = 1, *, timeout_s: float = 10.0) -> None:
        from pebble import ProcessPool  # in the extra `eval`, which other benchmarks do not need

        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=num_workers, initializer=_prepare_worker, context=context)

    async def compare(self, gold: str, answer: str) -> Relation:
        """How `answer` relates to `gold`. Raises: MathTimeout."""
        from pebble import ProcessExpired

        future = self._pool.schedule(_compare, args=(gold, answer), timeout=self._timeout_s)
        try:
            return await asyncio.wrap_future(future)
        except (TimeoutError, ProcessExpired, MemoryError) as e:
            raise MathTimeout(f"{type(e).__name__} after at most {self._timeout_s:g} s") from e

    async def close(self) -> None:
        """Kill the workers and cancel the comparisons that are running."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        await asyncio.to_thread(self._pool.join)


def _prepare_worker() -> None:
    """Bound the worker's memory, and import sympy before the time of the first comparison starts."""
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY_BYTES, _WORKER_MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _compare("1", "2")


def _compare(gold: str, answer: str) -> Relation:
    from r2_serve.grading.math_compare import compare

    return compare(gold, answer)
