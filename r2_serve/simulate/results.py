"""What a simulated run came to: one row per query, one line of the timeline per second, and the bill."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r2_serve.simulate.queries import Query, Router
    from r2_serve.simulate.system import System

NOT_STREAMED = -1.0
"""In place of a time of the first token."""


@dataclass
class Columns:
    """Of every query that ended, in the order of their ends."""

    index: array[int] = field(default_factory=lambda: array("q"))
    intended_s: array[float] = field(default_factory=lambda: array("d"))
    first_token_s: array[float] = field(default_factory=lambda: array("d"))
    end_s: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("h"))
    cost_usd: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[float] = field(default_factory=lambda: array("d"))
    num_subtasks: array[int] = field(default_factory=lambda: array("h"))


@dataclass(frozen=True)
class DeploymentSample:
    """At one moment."""

    running: int
    starting: int
    stopping: int
    target: int
    queued: int
    ongoing: int


@dataclass(frozen=True)
class Sample:
    """A line of the timeline."""

    t_s: float
    num_came: int
    num_ended: int
    router_running: int
    router_queued: int
    spend_usd: float
    gpu_usd: float
    nodes: int
    deployments: dict[str, DeploymentSample]


@dataclass(frozen=True)
class Run:
    """A simulated run."""

    queries: Columns
    timeline: list[Sample]
    duration_s: float
    """Until the last query ended."""
    replica_seconds: dict[str, float]
    """Of starting and running replicas, by deployment."""
    num_decisions: dict[str, int]
    """Times that the autoscaler changed a deployment's target."""
    gpu_seconds: float
    gpu_usd: float
    wall_s: float


class Recorder:
    """Keeps what happens. `idle` is called whenever every query that came has ended."""

    def __init__(self) -> None:
        self.num_came = self.num_ended = 0
        self.spend_usd = 0.0
        self.queries = Columns()
        self.timeline: list[Sample] = []
        self.idle: Callable[[], None] = lambda: None

    def came(self) -> None:
        self.num_came += 1

    def ended(self, query: Query, status: int, end_s: float) -> None:
        self.num_ended += 1
        self.spend_usd += query.cost_usd
        columns = self.queries
        columns.index.append(query.index)
        columns.intended_s.append(query.intended_s)
        columns.first_token_s.append(NOT_STREAMED if query.first_token_s is None else query.first_token_s)
        columns.end_s.append(end_s)
        columns.status.append(status)
        columns.cost_usd.append(query.cost_usd)
        columns.tokens.append(query.tokens)
        columns.num_subtasks.append(len(query.models))
        if self.num_ended == self.num_came:
            self.idle()

    def sample(self, now_s: float, system: System, router: Router) -> None:
        num_active = len(router.active)
        self.timeline.append(
            Sample(
                t_s=now_s,
                num_came=self.num_came,
                num_ended=self.num_ended,
                router_running=num_active,
                router_queued=self.num_came - self.num_ended - num_active,
                spend_usd=self.spend_usd,
                gpu_usd=system.machines.cost_usd(),
                nodes=system.machines.num_nodes,
                deployments={
                    name: DeploymentSample(
                        running=len(deployment.running),
                        starting=deployment.num_starting,
                        stopping=deployment.num_stopping,
                        target=deployment.target_num_replicas,
                        queued=deployment.num_queued,
                        ongoing=deployment.num_ongoing(),
                    )
                    for name, deployment in system.deployments.items()
                },
            )
        )

    def run(self, system: System, now_s: float, *, wall_s: float) -> Run:
        for deployment in system.deployments.values():
            deployment.count()
        gpu_usd = system.machines.cost_usd()
        return Run(
            queries=self.queries,
            timeline=self.timeline,
            duration_s=now_s,
            replica_seconds={name: deployment.replica_seconds for name, deployment in system.deployments.items()},
            num_decisions={scaled.deployment.name: scaled.num_decisions for scaled in system.scaled},
            gpu_seconds=system.machines.paid_gpu_seconds,
            gpu_usd=gpu_usd,
            wall_s=wall_s,
        )
