"""Decomposer and allocator as a cluster has them, without one: ledgers of their own, and reports that are pickled on their way."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

from r2_serve.ledger import Ledger
from r2_serve.router import Router
from r2_serve.stages import report_of
from r2_serve.types import CallRecord


class Elsewhere:
    """A deployment's method as the router sees it."""

    def __init__(self, stage: Any) -> None:
        self._stage, self.num_running, self.most_running = stage, 0, 0
        self.unreported: list[CallRecord] = []
        """Calls of stages that were cancelled: they report nothing, so the router's ledger has an estimate of them."""

    def remote(self, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._run(*args))

    async def _run(self, *args: Any) -> Any:
        async def stage(ledger: Ledger) -> Any:
            try:
                return await self._stage(*args[:-1], ledger)
            except asyncio.CancelledError:
                self.unreported += ledger.calls
                raise

        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            return pickle.loads(pickle.dumps(await report_of(stage, args[-1])))
        finally:
            self.num_running -= 1


def move_stages_elsewhere(router: Router) -> list[Elsewhere]:
    """From now on `router` has its decomposer and its allocator, returned in this order, behind a deployment's handle."""
    from r2_serve.served import ServedAllocator, ServedDecomposer  # it takes Ray, though no cluster

    pipeline: Any = router._pipeline
    decomposes, allocates = stages = [Elsewhere(stage) for stage in (pipeline.decomposer.decompose, pipeline.allocator.allocate)]
    pipeline.decomposer = ServedDecomposer(SimpleNamespace(decompose=decomposes), pipeline.pool)  # type: ignore[arg-type]
    pipeline.allocator = ServedAllocator(SimpleNamespace(allocate=allocates), pipeline.pool)  # type: ignore[arg-type]
    return stages
