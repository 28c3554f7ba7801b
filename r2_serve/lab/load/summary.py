"""The figures of a run, computed from its lines alone: `requests.jsonl` and `timeline.jsonl` are enough to
repeat it.

Latencies count from the intended start, of answered requests only; failed requests count against the
objective. A request is good if it was answered within every limit of the workload's `slo` and, where answers
are graded, correctly.
"""

from __future__ import annotations

import datetime
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from statistics import fmean, quantiles
from typing import Self

from pydantic import Field

from r2_serve.lab.load.records import LoadRecord, ReplicaCount, TimelineSample
from r2_serve.lab.runs import code_version, machine_line
from r2_serve.lab.workload import Slo, Workload
from r2_serve.scaling.cold_starts import PARTS, ColdStart
from r2_serve.types import Record

LATE_S = 0.05
"""99th percentile of the generator's lateness above which a run gets a warning."""


class RunInfo(Record):
    """The workload, the place and the time of a run."""

    workload: str
    seed: int
    url: str
    model: str
    slo: Slo
    duration_s: float | None
    """Time in which requests were to be sent; None for a whole trace."""
    started: str
    """UTC time in ISO form."""
    code_version: str
    machine: str
    max_open: int
    gpu_usd_per_hour: float = 0.0
    node_idle_timeout_s: float | None = None
    """If not None, a node counts only while it is in use and so long after, as if an autoscaler of nodes
    took it away then; None counts nodes as they were."""
    is_interrupted: bool = False
    blocked_s: float = 0.0
    """Time in which nothing was sent because every connection was taken."""

    @classmethod
    def of(
        cls,
        workload: Workload,
        url: str,
        *,
        seed: int | None,
        gpu_usd_per_hour: float,
        max_open: int = 0,
        node_idle_timeout_s: float | None = None,
    ) -> Self:
        """A run that starts now on this machine; a `seed` of None is the workload's own."""
        return cls(
            workload=workload.name,
            seed=workload.seed if seed is None else seed,
            url=url,
            model=workload.tasks.model,
            slo=workload.slo,
            duration_s=workload.duration_s,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            code_version=code_version(),
            machine=machine_line(),
            max_open=max_open,
            gpu_usd_per_hour=gpu_usd_per_hour,
            node_idle_timeout_s=node_idle_timeout_s,
        )


class Distribution(Record):
    """Distribution of a time in seconds. Percentiles are interpolated linearly, as by numpy."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None if `values` is empty."""
        if not values:
            return None
        cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
        mean, largest = fmean(values), max(values)
        return cls(mean=mean, p50=cuts[49], p90=cuts[89], p95=cuts[94], p99=cuts[98], max=largest)


class DeploymentUse(Record):
    """The replicas that a deployment used over the run, until the last reply."""

    replica_s: float
    """Integral of running and starting replicas over time."""
    starting_s: float
    """The part of it in which replicas were starting, and did no work yet."""
    max_replicas: int
    gpus_per_replica: float
    gpu_s: float
    """GPUs held over time: also by stopping replicas, which `replica_s` leaves out, and not by those that
    wait for a node, which it counts."""


class LoadSummary(Record):
    """All figures of a run."""

    info: RunInfo
    wall_s: float
    """Time until the end of the last request."""
    num_sent: int
    num_ok: int
    num_failed: int
    num_unfinished: int
    errors: dict[str, int]
    """Failed requests by kind, the most frequent first."""
    sent_per_s: float
    ok_per_s: float
    latency_s: Distribution | None
    ttft_s: Distribution | None
    lateness_s: Distribution | None
    num_good: int
    slo_attainment: float | None
    """Good requests as a share of all that ended; None if none ended."""
    goodput_per_s: float
    """Good requests per second of the run, including its end after the last request was sent."""
    num_graded: int
    num_correct: int
    cost_usd: Decimal
    """Cost of the replies that report one."""
    num_cost_unknown: int
    prompt_tokens: int
    completion_tokens: int
    deployments: dict[str, DeploymentUse] = Field(default_factory=dict)
    replica_s: float
    gpu_s: float
    gpu_usd: float
    node_s: float | None = None
    """Seconds of nodes with GPUs; None if they were not counted."""
    cold_starts: dict[str, dict[str, Distribution]] = Field(default_factory=dict)
    """Each part of the cold starts of each application (`r2_serve.scaling.cold_starts`)."""
    warnings: tuple[str, ...] = ()


def is_good(record: LoadRecord, slo: Slo) -> bool:
    """True if the request met the objective."""
    if record.outcome != "ok" or record.correct is False:
        return False
    if slo.ttft_s is not None and (record.ttft_s is None or record.ttft_s > slo.ttft_s):
        return False
    return slo.latency_s is None or record.latency_s <= slo.latency_s


def summarize(
    info: RunInfo,
    records: Iterable[LoadRecord],
    timeline: Sequence[TimelineSample],
    starts: Sequence[ColdStart] = (),
) -> LoadSummary:
    """Reads `records` once: a run of millions needs memory for three numbers each."""
    tally = _Tally(info.slo)
    for record in records:
        tally.add(record)
    outcomes, wall_s = tally.outcomes, max(tally.wall_s, 1e-9)
    num_ended = outcomes["ok"] + outcomes["failed"]
    deployments = deployment_use(timeline)
    gpu_s = sum(use.gpu_s for use in deployments.values())
    lateness = Distribution.of(tally.lateness)
    return LoadSummary(
        info=info,
        wall_s=tally.wall_s,
        num_sent=outcomes.total(),
        num_ok=outcomes["ok"],
        num_failed=outcomes["failed"],
        num_unfinished=outcomes["unfinished"],
        errors=dict(tally.errors.most_common()),
        sent_per_s=outcomes.total() / max(min(info.duration_s or wall_s, wall_s), 1e-9),
        ok_per_s=outcomes["ok"] / wall_s,
        latency_s=Distribution.of(tally.latencies),
        ttft_s=Distribution.of(tally.ttfts),
        lateness_s=lateness,
        num_good=tally.num_good,
        slo_attainment=tally.num_good / num_ended if num_ended else None,
        goodput_per_s=tally.num_good / wall_s,
        num_graded=tally.num_graded,
        num_correct=tally.num_correct,
        cost_usd=tally.cost_usd,
        num_cost_unknown=tally.num_cost_unknown,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        deployments=deployments,
        replica_s=sum(use.replica_s for use in deployments.values()),
        gpu_s=gpu_s,
        gpu_usd=gpu_s / 3600 * info.gpu_usd_per_hour,
        node_s=node_seconds(timeline, info.node_idle_timeout_s),
        cold_starts=_start_times(starts),
        warnings=tuple(_warnings(info, lateness)),
    )


def _start_times(starts: Sequence[ColdStart]) -> dict[str, dict[str, Distribution]]:
    found: dict[str, dict[str, Distribution]] = {}
    for app in sorted({start.app for start in starts}):
        own = [start for start in starts if start.app == app]
        times = {part: [getattr(start, part) for start in own] for part in (*PARTS, "on_node_s")}
        known = {part: Distribution.of([t for t in all_ if t is not None]) for part, all_ in times.items()}
        found[app] = {part: spread for part, spread in known.items() if spread is not None}
    return found


def deployment_use(timeline: Sequence[TimelineSample]) -> dict[str, DeploymentUse]:
    """Integrates by trapezoids between samples with counts; an absent deployment has no replica."""
    seen = [sample for sample in timeline if sample.deployments]
    names = sorted({name for sample in seen for name in sample.deployments})
    none = ReplicaCount(running=0, starting=0, target=0)
    return {name: _use([(s.t_s, s.deployments.get(name, none)) for s in seen]) for name in names}


def _use(counts: Sequence[tuple[float, ReplicaCount]]) -> DeploymentUse:
    replica_s = _integral([(t, count.running + count.starting) for t, count in counts])
    gpus = max(count.gpus for _, count in counts)
    return DeploymentUse(
        replica_s=replica_s,
        starting_s=_integral([(t, count.starting) for t, count in counts]),
        max_replicas=max(count.running + count.starting for _, count in counts),
        gpus_per_replica=gpus,
        gpu_s=gpus * _integral([(t, c.running + c.starting - c.waiting + c.stopping) for t, c in counts]),
    )


def node_seconds(timeline: Sequence[TimelineSample], idle_timeout_s: float | None = None) -> float | None:
    """Seconds of nodes with GPUs that were up or booted; None if no sample has any.

    With `idle_timeout_s` a node counts from its first use, and no longer than that after a use.
    """
    seen = [(sample.t_s, sample.nodes) for sample in timeline if sample.deployments]
    if not any(nodes for _, nodes in seen):
        return None
    if idle_timeout_s is None:
        return _integral([(t, len(nodes)) for t, nodes in seen])
    return sum(
        _seconds_until_idle([(t, nodes.get(name, 0.0) > 0) for t, nodes in seen], idle_timeout_s)
        for name in {name for _, nodes in seen for name in nodes}
    )


def _seconds_until_idle(uses: Sequence[tuple[float, bool]], idle_timeout_s: float) -> float:
    """The time in which a node is used, or was used at most `idle_timeout_s` before."""
    total_s, kept_until_s = 0.0, -math.inf
    for (a, is_used), (b, _) in itertools.pairwise(uses):
        if is_used:
            kept_until_s = b + idle_timeout_s
        total_s += max(0.0, min(b, kept_until_s) - a)
    return total_s


def _integral(points: Sequence[tuple[float, int]]) -> float:
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in itertools.pairwise(points))


class _Tally:
    """One pass over the requests."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self.latencies, self.ttfts, self.lateness = array("d"), array("d"), array("d")
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wall_s, self.cost_usd = 0.0, Decimal(0)
        self.num_good = self.num_graded = self.num_correct = self.num_cost_unknown = 0
        self.prompt_tokens = self.completion_tokens = 0

    def add(self, record: LoadRecord) -> None:
        self.outcomes[record.outcome] += 1
        self.lateness.append(record.lateness_s)
        self.wall_s = max(self.wall_s, record.end_s)
        if record.outcome == "ok":
            self.latencies.append(record.latency_s)
            if record.ttft_s is not None:
                self.ttfts.append(record.ttft_s)
        if record.outcome == "failed":
            self.errors[record.error_kind] += 1
        self.num_good += is_good(record, self._slo)
        self.num_graded += record.correct is not None
        self.num_correct += record.correct is True
        self.num_cost_unknown += record.cost_usd is None
        self.cost_usd += record.cost_usd or 0
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens


def _warnings(info: RunInfo, lateness: Distribution | None) -> Iterable[str]:
    if info.is_interrupted:
        yield "the run was interrupted: the figures are those of the requests that had ended"
    if lateness is None or lateness.p99 <= LATE_S:
        return
    why = "its machine was too busy: use another one, or a lower rate"
    if info.blocked_s > LATE_S:
        taken = f"all {info.max_open} connections were taken (--max-open)"
        why = f"nothing was sent for {info.blocked_s:.1f} s as {taken}"
    yield (
        f"the generator was late: {1000 * lateness.p99:.0f} ms at the 99th percentile; {why}. "
        "Latencies include it, and arrivals were smoother than in the workload"
    )
