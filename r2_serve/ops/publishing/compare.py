"""What a candidate did beside the present router, from their traces and the scores that clients gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from r2_serve.config import MarginsConfig, RolloutConfig
from r2_serve.feedback import Score
from r2_serve.router.rollout import is_of_trial
from r2_serve.router.trial_evidence import (
    SHARES,
    Comparison,
    Mean,
    Metric,
    Verdict,
    agreement,
    compared,
    is_evidence,
    mean_of,
    overall,
    paired,
    values_of,
)
from r2_serve.types import Record, Trace

Scores = Mapping[tuple[str, int | None], Score]
Read = Callable[[str], str | None]
"""Finds the answer in a reply; equal answers have equal spellings."""
METRICS: tuple[Metric, ...] = ("score", "failures", "fallbacks", "cost", "seconds")


class Latency(Record):
    """Seconds of answered queries."""

    p50: float
    p95: float


class Report(Record):
    """One candidate against the present router."""

    virtual_model: str
    candidate: str
    confidence: float
    verdict: Verdict
    canary: tuple[Comparison, ...] = ()
    """Queries of the candidate's clients against those of all others, in the same time."""
    shadow: tuple[Comparison, ...] = ()
    """The same queries, answered by both."""
    latency: dict[str, Latency] = Field(default={})
    """The times of each arm: `incumbent`, `canary`, `shadow`."""
    shadow_usd: float = 0.0
    """What the shadows have cost."""

    @property
    def num_candidate(self) -> int:
        """Queries that the candidate has answered or failed."""
        return max((found.num_candidate for found in (*self.canary, *self.shadow)), default=0)


@dataclass(frozen=True)
class Evidence:
    """The traces of one trial, by arm."""

    incumbent: Sequence[Trace]
    canary: Sequence[Trace]
    shadow: Sequence[Trace]

    @classmethod
    def of(cls, traces: Iterable[Trace], virtual_model: str, candidate: str) -> Evidence:
        """The traces of the trial that say something of a router."""
        arms: dict[str, list[Trace]] = {"incumbent": [], "canary": [], "shadow": []}
        for trace in traces:
            if trace.rollout and is_of_trial(trace, virtual_model, candidate) and is_evidence(trace):
                arms[trace.rollout.arm].append(trace)
        return cls(**arms)


def report_of(
    evidence: Evidence,
    virtual_model: str,
    rollout: RolloutConfig,
    scores: Scores,
    read: Read,
    confidence: float = 0.95,
) -> Report:
    """The comparisons and the verdict. Where clients get the candidate's answers, their queries decide."""
    margins = rollout.margins
    canary = tuple(_canary(evidence, scores, margins, confidence))
    shadow = tuple(_shadow(evidence, margins, read, confidence))
    same = tuple(found for found in shadow if found.metric == "agreement")
    verdicts = [overall((*canary, *same) if canary else shadow), overall(shadow)]
    arms = {name: _latency(getattr(evidence, name)) for name in ("incumbent", "canary", "shadow")}
    return Report(
        virtual_model=virtual_model,
        candidate=rollout.candidate,
        confidence=confidence,
        verdict="worse" if "worse" in verdicts else verdicts[0],
        canary=canary,
        shadow=shadow,
        latency={name: found for name, found in arms.items() if found},
        shadow_usd=float(sum(trace.cost_usd for trace in evidence.shadow)),
    )


def margin_of(margins: MarginsConfig, metric: Metric) -> float:
    """The margin of a metric; score and agreement are about accuracy."""
    is_accuracy = metric in ("score", "agreement")
    return float(getattr(margins, "accuracy" if is_accuracy else metric))


def _canary(
    evidence: Evidence, scores: Scores, margins: MarginsConfig, confidence: float
) -> Iterable[Comparison]:
    if not evidence.canary:
        return
    for metric in METRICS:
        before, new = (_mean(traces, metric, scores) for traces in (evidence.incumbent, evidence.canary))
        if before.n and new.n:
            yield compared(metric, before, new, margin_of(margins, metric), confidence)


def _mean(traces: Sequence[Trace], metric: Metric, scores: Scores) -> Mean:
    known = [
        (value, _unit(trace)) for trace in traces if (value := _value(trace, metric, scores)) is not None
    ]
    return mean_of([value for value, _ in known], [unit for _, unit in known], is_share=metric in SHARES)


def _value(trace: Trace, metric: Metric, scores: Scores) -> float | None:
    if metric != "score":
        return values_of(trace).get(metric)
    score = scores.get((trace.task, None))
    return None if score is None else score.score


def _unit(trace: Trace) -> str:
    return trace.rollout.unit if trace.rollout else trace.task


def _shadow(
    evidence: Evidence, margins: MarginsConfig, read: Read, confidence: float
) -> Iterable[Comparison]:
    seen = {trace.task: trace for trace in evidence.incumbent}
    pairs = [
        (seen[shadow.rollout.of], shadow)
        for shadow in evidence.shadow
        if shadow.rollout and shadow.rollout.of in seen
    ]
    if not pairs:
        return
    if same := [_is_same(read, *pair) for pair in pairs if all(trace.answer for trace in pair)]:
        yield agreement(same, margin_of(margins, "agreement"), confidence)
    for metric in METRICS[1:]:
        both = [(values_of(a).get(metric), values_of(b).get(metric)) for a, b in pairs]
        known = [(a, b) for a, b in both if a is not None and b is not None]
        if known:
            yield paired(metric, known, margin_of(margins, metric), confidence)


def _is_same(read: Read, incumbent: Trace, shadow: Trace) -> bool:
    """Whether both answers are equal, as the grader reads them; as texts where it finds none."""
    first, second = (trace.answer or "" for trace in (incumbent, shadow))
    one, other = read(first), read(second)
    return one == other if one is not None and other is not None else first.split() == second.split()


def _latency(traces: Sequence[Trace]) -> Latency | None:
    seconds = sorted(trace.duration_s for trace in traces if trace.error is None)
    if not seconds:
        return None
    p50, p95 = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.95))
    return Latency(p50=p50, p95=p95)
