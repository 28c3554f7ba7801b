"""What a simulated run came to, in the very records of a real one: the same figures are computed from both, by the same code."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from r2_serve.lab.load.records import QueueState, ReplicaCount, RequestRecord, TimelineSample
from r2_serve.lab.simulate.queries import DEADLINE, OK, OVERLOADED, SUBTASK_FAILED, UNAVAILABLE, Query

if TYPE_CHECKING:
    from r2_serve.lab.simulate.router import Router
    from r2_serve.lab.simulate.system import System

NO_TOKEN = -1.0
"""In place of the time of the first token of what failed."""
ERRORS = {
    OVERLOADED: "overloaded: the router's queue was full",
    SUBTASK_FAILED: "subtask_failed: its model and the fallbacks",
    UNAVAILABLE: "unavailable: no room at any router",
    DEADLINE: "deadline_exceeded: no answer in time",
}


@dataclass
class Columns:
    """Of every query that ended, in the order of their ends: a run of millions needs eighty bytes for each."""

    index: array[int] = field(default_factory=lambda: array("q"))
    intended_s: array[float] = field(default_factory=lambda: array("d"))
    first_token_s: array[float] = field(default_factory=lambda: array("d"))
    end_s: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("h"))
    cost_usd: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[float] = field(default_factory=lambda: array("d"))
    reply_tokens: array[float] = field(default_factory=lambda: array("d"))
    num_subtasks: array[int] = field(default_factory=lambda: array("h"))

    def add(self, query: Query, status: int, end_s: float) -> None:
        self.index.append(query.index)
        self.intended_s.append(query.intended_s)
        self.first_token_s.append(NO_TOKEN if query.first_token_s is None else query.first_token_s)
        self.end_s.append(end_s)
        self.status.append(status)
        self.cost_usd.append(query.cost_usd)
        self.prompt_tokens.append(query.prompt_tokens)
        self.reply_tokens.append(query.reply_tokens)
        self.num_subtasks.append(len(query.models))

    def records(self) -> Iterator[RequestRecord]:
        columns = (self.index, self.intended_s, self.first_token_s, self.end_s, self.status)
        sizes = (self.cost_usd, self.prompt_tokens, self.reply_tokens, self.num_subtasks)
        for (index, intended_s, first_s, end_s, status), (cost, prompt, reply, count) in zip(
            zip(*columns), zip(*sizes)
        ):
            yield RequestRecord.model_construct(  # checked by its type: pydantic would take longer than the simulation
                index=index,
                intended_start_s=intended_s,
                sent_s=intended_s,
                first_token_s=first_s if status == OK else None,
                end_s=end_s,
                outcome="ok" if status == OK else "failed",
                status=status,
                error=ERRORS.get(status),
                cost_usd=Decimal(f"{cost:.9f}") if status == OK else None,
                prompt_tokens=round(prompt),
                completion_tokens=round(reply),
                num_subtasks=count if status == OK else None,
                task_id=None,
                answer=None,
                correct=None,
            )


@dataclass(frozen=True)
class Run:
    """A simulated run."""

    queries: Columns
    timeline: list[TimelineSample]
    duration_s: float
    """Until the last query ended."""
    num_decisions: dict[str, int]
    """Times that the autoscaler changed a deployment's target."""
    paid_gpu_s: float
    """GPUs that were paid for: booting and idle nodes among them, which the summary's `gpu_s` leaves out."""
    paid_usd: float
    num_events: int
    wall_s: float

    @property
    def num_subtasks(self) -> int:
        return sum(self.queries.num_subtasks)


class Recorder:
    """Keeps what happens. `idle` is called whenever every query that came has ended."""

    def __init__(self) -> None:
        self.num_came = self.num_ended = self.num_failed = 0
        self.queries = Columns()
        self.timeline: list[TimelineSample] = []
        self.idle: Callable[[], None] = lambda: None
        self._spent_usd = 0.0

    def came(self) -> None:
        self.num_came += 1

    def ended(self, query: Query, status: int, end_s: float) -> None:
        self.num_ended += 1
        self.num_failed += status != OK
        self._spent_usd += query.cost_usd
        self.queries.add(query, status, end_s)
        if self.num_ended == self.num_came:
            self.idle()

    def sample(self, now_s: float, system: System, router: Router) -> None:
        num_active, num_open = len(router.active), self.num_came - self.num_ended
        self.timeline.append(
            TimelineSample(
                t_s=round(now_s, 3),
                num_sent=self.num_came,
                num_done=self.num_ended,
                num_failed=self.num_failed,
                num_open=num_open,
                spent_usd=Decimal(f"{self._spent_usd:.6f}"),
                queue=QueueState(running=num_active, queued=num_open - num_active),
                deployments={
                    name: ReplicaCount(
                        running=len(deployment.running),
                        starting=deployment.num_starting,
                        stopping=deployment.num_stopping,
                        target=deployment.target_num_replicas,
                        gpus=deployment.options.gpus,
                    )
                    for name, deployment in system.deployments.items()
                },
            )
        )

    def run(self, system: System, now_s: float, *, num_events: int, wall_s: float) -> Run:
        return Run(
            queries=self.queries,
            timeline=self.timeline,
            duration_s=now_s,
            num_decisions={scaled.deployment.name: scaled.num_decisions for scaled in system.scaled},
            paid_usd=system.machines.cost_usd(),
            paid_gpu_s=system.machines.paid_gpu_seconds,
            num_events=num_events,
            wall_s=wall_s,
        )
