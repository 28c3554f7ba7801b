"""Decomposer and allocator as if in other processes: each has its own ledger, and its reports are pickled."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

from r2_serve.calls.ledger import Ledger
from r2_serve.cluster.stages import report_of
from r2_serve.router.router import Router


class RemoteStage:
    """The method of a deployment as the router sees it."""

    def __init__(self, stage: Any) -> None:
        self._stage, self.num_running, self.most_running = stage, 0, 0
        self.lost: list[list[Ledger]] = []
        """Ledgers of each report that the router did not wait for; empty if no call had begun."""

    def remote(self, *args: Any) -> _Response:
        return _Response(self, args)

    async def run(self, args: tuple[Any, ...], ledgers: list[Ledger]) -> Any:
        async def stage(ledger: Ledger) -> Any:
            ledgers.append(ledger)
            return await self._stage(*args[:-2], ledger)

        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            return pickle.loads(pickle.dumps(await report_of(stage, *args[-2:])))
        finally:
            self.num_running -= 1


class _Response:
    """A deployment handle's response: it works from the start, and is awaited once."""

    def __init__(self, method: RemoteStage, args: tuple[Any, ...]) -> None:
        self._method, self._ledgers = method, list[Ledger]()
        self._task = asyncio.ensure_future(method.run(args, self._ledgers))
        self.cancel = self._task.cancel

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._task.__await__())
        except asyncio.CancelledError:
            self._method.lost.append(self._ledgers)
            raise


def make_stages_remote(router: Router) -> list[RemoteStage]:
    """Puts the decomposer and the allocator of `router` behind a handle; returns them in this order."""
    from r2_serve.cluster.handles import ServedAllocator, ServedDecomposer  # this import loads Ray

    pipeline: Any = router._pipeline
    decomposes, allocates = stages = [
        RemoteStage(stage) for stage in (pipeline.decomposer.decompose, pipeline.allocator.allocate)
    ]
    handle: Any = SimpleNamespace(decompose=decomposes, allocate=allocates)
    pipeline.decomposer = ServedDecomposer(handle, pipeline.pool)
    pipeline.allocator = ServedAllocator(handle, pipeline.pool)
    return stages
