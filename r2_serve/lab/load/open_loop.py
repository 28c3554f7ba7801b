"""Sends each request at its time, without waiting for those before it, in bounded connections and memory.

If all connections are taken, the next request waits, and those behind it wait in the workload, which is read
as it is sent. That wait is the generator's lateness and is part of every latency. Times are those of the
event loop's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from r2_serve.lab.load.records import ClusterCounts, LoadOutcome, LoadRecord, QueueState, TimelineSample
from r2_serve.lab.workload import Request


@dataclass
class LoadReply:
    """The reply to one request, filled in while it comes, so that an interrupted one shows what it had."""

    sent_at: float = 0.0
    """Time on the event loop's clock."""
    first_token_at: float | None = None
    status: int | None = None
    error: str | None = None
    text: str = ""
    cost_usd: Decimal | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_subtasks: int | None = None


class Send(Protocol):
    """Sends one request and reads its reply to the end. An exception fails this request alone."""

    async def __call__(self, request: Request, reply: LoadReply) -> None: ...


@dataclass
class LoadCounts:
    """Live counts of a run."""

    num_sent: int = 0
    num_done: int = 0
    num_failed: int = 0
    blocked_s: float = 0.0
    """Time in which nothing was sent because every connection was taken."""
    spent_usd: Decimal = field(default_factory=Decimal)

    @property
    def num_open(self) -> int:
        return self.num_sent - self.num_done

    def sample(self, t_s: float, queue: QueueState | None, cluster: ClusterCounts) -> TimelineSample:
        """The counts now, with what else is known."""
        return TimelineSample(
            t_s=round(t_s, 3),
            num_sent=self.num_sent,
            num_done=self.num_done,
            num_failed=self.num_failed,
            num_open=self.num_open,
            spent_usd=self.spent_usd,
            queue=queue,
            deployments=cluster.deployments,
            nodes=cluster.nodes,
            engines=cluster.engines,
        )


class OpenLoop:
    """One run. `on_end` is called with every request as it ends, also if `run` is cancelled."""

    def __init__(self, send: Send, *, max_open: int, on_end: Callable[[LoadRecord], None]) -> None:
        self._send, self._on_end = send, on_end
        self._places = asyncio.Semaphore(max_open)
        self._start_at = 0.0
        self.counts = LoadCounts()

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_at

    async def run(self, requests: Iterable[Request]) -> None:
        """Returns when all are answered. Cancelling it stops sending and gives up the requests under way."""
        self._start_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(max(0.0, request.start_s - self.elapsed_s))
                due_s = self.elapsed_s
                await self._places.acquire()
                self.counts.blocked_s += self.elapsed_s - due_s
                self.counts.num_sent += 1
                group.create_task(self._one(request))

    async def _one(self, request: Request) -> None:
        reply = LoadReply(sent_at=asyncio.get_running_loop().time())
        outcome: LoadOutcome = "unfinished"
        try:
            await self._send(request, reply)
            outcome = "ok" if reply.error is None else "failed"
        except Exception as e:  # a fault of one reply must not end the run  # noqa: BLE001
            reply.error, outcome = f"{type(e).__name__}: {e}", "failed"
        finally:
            self._places.release()
            self._finish(self._record(request, reply, outcome))

    def _record(self, request: Request, reply: LoadReply, outcome: LoadOutcome) -> LoadRecord:
        first_at, task = reply.first_token_at, request.task
        return LoadRecord(
            index=request.index,
            intended_start_s=round(request.start_s, 6),
            sent_s=round(reply.sent_at - self._start_at, 6),
            first_token_s=None if first_at is None else round(first_at - self._start_at, 6),
            end_s=round(self.elapsed_s, 6),
            outcome=outcome,
            status=reply.status,
            error=reply.error,
            cost_usd=reply.cost_usd,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            num_subtasks=reply.num_subtasks,
            task_id=None if task is None else task.id,
            answer=reply.text if task is not None and outcome == "ok" else None,
        )

    def _finish(self, record: LoadRecord) -> None:
        self.counts.num_done += 1
        self.counts.num_failed += record.outcome == "failed"
        self.counts.spent_usd += record.cost_usd or 0
        self._on_end(record)
