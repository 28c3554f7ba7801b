"""The results of a simulated run, in the records and the files of a real one: the same code computes both
runs' figures.

requests.jsonl, timeline.jsonl, summary.json, report.html   as in `r2_serve.lab.load.run_directory`
simulation.json          facts of the simulation: decisions, paid GPUs, its own speed
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from r2_serve.files import write_whole
from r2_serve.lab.jsonl import write_jsonl
from r2_serve.lab.load.open_loop import LoadCounts
from r2_serve.lab.load.records import (
    ClusterCounts,
    EngineState,
    LoadRecord,
    QueueState,
    ReplicaCount,
    TimelineSample,
)
from r2_serve.lab.load.run_directory import REQUESTS, TIMELINE, write_report
from r2_serve.lab.load.summary import LoadSummary, RunInfo, summarize
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.replicas import EngineReplica
from r2_serve.lab.simulate.router import (
    DEADLINE,
    OK,
    OVERLOADED,
    SUBTASK_FAILED,
    UNAVAILABLE,
    SimulatedQuery,
    SimulatedRouter,
)  # fmt: skip
from r2_serve.types import Record

SIMULATION = "simulation.json"
LARGEST_PAGE = 200_000
"""Most requests of a run that gets a page."""
ERRORS = {
    OVERLOADED: "overloaded: the router's queue was full",
    SUBTASK_FAILED: "subtask_failed: its model and the fallbacks",
    UNAVAILABLE: "unavailable: no room at any router",
    DEADLINE: "deadline_exceeded: no answer in time",
}


class SimulationFacts(Record):
    """The facts that only a simulation knows."""

    num_decisions: dict[str, int]
    """Changes of a deployment's target by the autoscaler."""
    paid_gpu_s: float
    """Paid GPU seconds, with those of booting and idle nodes, which `gpu_s` leaves out."""
    paid_usd: float
    node_s: float
    """Seconds of nodes that were up or booted, exactly; the summary's are sums over the samples."""
    num_events: int
    num_subtasks: int
    wall_s: float
    hardware: Hardware


class EndedQueries:
    """Every query that ended, in the order of their ends, as nine numbers each: a run may have millions."""

    def __init__(self) -> None:
        self._numbers = array("d")

    def add(self, query: SimulatedQuery, status: int, end_s: float) -> None:
        times = (query.index, query.intended_s, query.first_token_s or 0.0, end_s)
        sizes = (query.cost_usd, query.prompt_tokens, query.reply_tokens, len(query.models))
        self._numbers.extend((*times, status, *sizes))

    def records(self) -> Iterator[LoadRecord]:
        numbers = iter(self._numbers)
        for index, intended_s, first_s, end_s, status, cost, prompt, reply, count in zip(*[numbers] * 9):
            is_ok = status == OK
            yield LoadRecord.model_construct(  # mypy checks it; pydantic would be slower
                index=int(index),
                intended_start_s=intended_s,
                sent_s=intended_s,
                first_token_s=first_s if is_ok else None,
                end_s=end_s,
                outcome="ok" if is_ok else "failed",
                status=int(status),
                error=ERRORS.get(int(status)),
                cost_usd=Decimal(f"{cost:.9f}") if is_ok else None,
                prompt_tokens=round(prompt),
                completion_tokens=round(reply),
                num_subtasks=int(count) if is_ok else None,
                task_id=None,
                answer=None,
                correct=None,
            )


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run."""

    queries: EndedQueries
    timeline: list[TimelineSample]
    duration_s: float
    """Time until the last query ended."""
    facts: SimulationFacts

    def write(self, directory: Path, info: RunInfo, *, has_rows: bool = True) -> LoadSummary:
        """Writes the run's files; `requests.jsonl` and the page only if `has_rows`."""
        summary = summarize(info, self.queries.records(), self.timeline)
        write_whole(directory / SIMULATION, self.facts.model_dump_json(indent=2))
        write_jsonl(directory / TIMELINE, self.timeline)
        if has_rows:
            write_jsonl(directory / REQUESTS, self.queries.records())
        has_page = has_rows and summary.num_sent <= LARGEST_PAGE
        records = list(self.queries.records()) if has_page else []
        write_report(directory, summary, records, self.timeline, has_page=has_page)
        return summary


class Recorder:
    """Keeps what happens. `on_idle` is called whenever every query that came has ended."""

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self.counts, self.queries, self.num_subtasks = LoadCounts(), EndedQueries(), 0
        self.timeline: list[TimelineSample] = []
        self._on_idle, self._spent_usd = on_idle, 0.0

    def ended(self, query: SimulatedQuery, status: int, end_s: float) -> None:
        self.counts.num_done += 1
        self.counts.num_failed += status != OK
        self.num_subtasks += len(query.models)
        self._spent_usd += query.cost_usd
        self.queries.add(query, status, end_s)
        if self.counts.num_open == 0:
            self._on_idle()

    def sample(self, now_s: float, router: SimulatedRouter) -> None:
        num_active = len(router.active)
        queue = QueueState(running=num_active, queued=self.counts.num_open - num_active)
        system = router.system
        replicas = {name: _count(deployment) for name, deployment in system.deployments.items()}
        self.counts.spent_usd = Decimal(f"{self._spent_usd:.6f}")
        engines = {name: _engines(deployment) for name, deployment in system.deployments.items()}
        known = {name: state for name, state in engines.items() if state is not None}
        cluster = ClusterCounts(deployments=replicas, nodes=system.machines.in_use(), engines=known)
        self.timeline.append(self.counts.sample(now_s, queue, cluster))


def _engines(deployment: Deployment) -> EngineState | None:
    """The batches of a deployment; None if its replicas have none."""
    states = [replica.engine_state for replica in deployment.running if isinstance(replica, EngineReplica)]
    if not states:
        return None
    return EngineState(running=sum(state[0] for state in states), waiting=sum(state[1] for state in states))


def _count(deployment: Deployment) -> ReplicaCount:
    return ReplicaCount(
        running=len(deployment.running),
        starting=deployment.num_starting,
        waiting=deployment.num_waiting,
        stopping=deployment.num_stopping,
        target=deployment.target_num_replicas,
        gpus=deployment.options.need.gpus,
    )
