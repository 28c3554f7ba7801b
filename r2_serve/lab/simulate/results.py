"""The results of a simulated run, in the records and the files of a real one: the same code computes both runs' figures.

requests.jsonl, timeline.jsonl, summary.json, report.html   as in `r2_serve.lab.load.run_directory`
simulation.json                                             facts of the simulation: decisions, paid GPUs, its own speed
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from r2_serve.files import write_whole
from r2_serve.lab.jsonl import replacing_jsonl
from r2_serve.lab.load.records import LoadRecord, QueueState, ReplicaCount, TimelineSample
from r2_serve.lab.load.run_directory import REQUESTS, TIMELINE, write_report
from r2_serve.lab.load.summary import LoadSummary, RunInfo, summarize
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.router import (
    DEADLINE,
    OK,
    OVERLOADED,
    SUBTASK_FAILED,
    UNAVAILABLE,
    SimulatedQuery,
    SimulatedRouter,
)
from r2_serve.types import Record

SIMULATION = "simulation.json"
LARGEST_PAGE = 200_000
"""Most requests of a run that gets a page."""
NO_TOKEN = -1.0
"""Replaces the time of the first token of a failed request."""
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
    """GPU seconds that were paid, with those of booting and idle nodes, which the summary's `gpu_s` leaves out."""
    paid_usd: float
    num_events: int
    num_subtasks: int
    wall_s: float
    hardware: Hardware


def _doubles() -> array[float]:
    return array("d")


@dataclass
class QueryColumns:
    """Every query that ended, in the order of their ends: a run of millions needs eighty bytes for each."""

    index: array[int] = field(default_factory=lambda: array("q"))
    intended_s: array[float] = field(default_factory=_doubles)
    first_token_s: array[float] = field(default_factory=_doubles)
    end_s: array[float] = field(default_factory=_doubles)
    status: array[int] = field(default_factory=lambda: array("h"))
    cost_usd: array[float] = field(default_factory=_doubles)
    prompt_tokens: array[float] = field(default_factory=_doubles)
    reply_tokens: array[float] = field(default_factory=_doubles)
    num_subtasks: array[int] = field(default_factory=lambda: array("h"))

    def add(self, query: SimulatedQuery, status: int, end_s: float) -> None:
        self.index.append(query.index)
        self.intended_s.append(query.intended_s)
        self.first_token_s.append(NO_TOKEN if query.first_token_s is None else query.first_token_s)
        self.end_s.append(end_s)
        self.status.append(status)
        self.cost_usd.append(query.cost_usd)
        self.prompt_tokens.append(query.prompt_tokens)
        self.reply_tokens.append(query.reply_tokens)
        self.num_subtasks.append(len(query.models))

    def records(self) -> Iterator[LoadRecord]:
        columns = (self.index, self.intended_s, self.first_token_s, self.end_s, self.status)
        sizes = (self.cost_usd, self.prompt_tokens, self.reply_tokens, self.num_subtasks)
        for (index, intended_s, first_s, end_s, status), (cost, prompt, reply, count) in zip(
            zip(*columns), zip(*sizes)
        ):
            is_ok = status == OK
            yield LoadRecord.model_construct(  # mypy checks it: pydantic would take longer than the simulation
                index=index,
                intended_start_s=intended_s,
                sent_s=intended_s,
                first_token_s=first_s if is_ok else None,
                end_s=end_s,
                outcome="ok" if is_ok else "failed",
                status=status,
                error=ERRORS.get(status),
                cost_usd=Decimal(f"{cost:.9f}") if is_ok else None,
                prompt_tokens=round(prompt),
                completion_tokens=round(reply),
                num_subtasks=count if is_ok else None,
                task_id=None,
                answer=None,
                correct=None,
            )


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run."""

    queries: QueryColumns
    timeline: list[TimelineSample]
    duration_s: float
    """Time until the last query ended."""
    facts: SimulationFacts

    def write(self, directory: Path, info: RunInfo, *, has_rows: bool = True) -> LoadSummary:
        """Writes the run's files; `requests.jsonl` and the page only if `has_rows`."""
        summary = summarize(info, self.queries.records(), self.timeline)
        write_whole(directory / SIMULATION, self.facts.model_dump_json(indent=2))
        with replacing_jsonl(directory / TIMELINE) as write:
            for sample in self.timeline:
                write(sample)
        if has_rows:
            with replacing_jsonl(directory / REQUESTS) as write:
                for record in self.queries.records():
                    write(record)
        has_page = has_rows and summary.num_sent <= LARGEST_PAGE
        records = list(self.queries.records()) if has_page else []
        write_report(directory, summary, records, self.timeline, has_page=has_page)
        return summary


class Recorder:
    """Keeps what happens. `on_idle` is called whenever every query that came has ended."""

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self.num_came = self.num_ended = self._num_failed = 0
        self.queries = QueryColumns()
        self.timeline: list[TimelineSample] = []
        self._on_idle, self._spent_usd = on_idle, 0.0

    @property
    def num_open(self) -> int:
        return self.num_came - self.num_ended

    def ended(self, query: SimulatedQuery, status: int, end_s: float) -> None:
        self.num_ended += 1
        self._num_failed += status != OK
        self._spent_usd += query.cost_usd
        self.queries.add(query, status, end_s)
        if self.num_open == 0:
            self._on_idle()

    def sample(self, now_s: float, router: SimulatedRouter) -> None:
        num_active = len(router.active)
        deployments = router.system.deployments
        self.timeline.append(
            TimelineSample(
                t_s=round(now_s, 3),
                num_sent=self.num_came,
                num_done=self.num_ended,
                num_failed=self._num_failed,
                num_open=self.num_open,
                spent_usd=Decimal(f"{self._spent_usd:.6f}"),
                queue=QueueState(running=num_active, queued=self.num_open - num_active),
                deployments={name: _count(deployment) for name, deployment in deployments.items()},
            )
        )


def _count(deployment: Deployment) -> ReplicaCount:
    return ReplicaCount(
        running=len(deployment.running),
        starting=deployment.num_starting,
        stopping=deployment.num_stopping,
        target=deployment.target_num_replicas,
        gpus=deployment.options.gpus,
    )
