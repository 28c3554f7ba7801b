"""Computes what a gateway adds, from slots: one gateway under one load for a few seconds.

Everything here is pure: no clock, no process, no HTTP.

A round holds one slot for each target and load. Everything is compared within its own round, because a shared
machine changes from one round to the next, and is reported as the median over rounds. CPU time is that of all
processes of a gateway. The CPU time that a gateway uses while others are measured gives its idle rate in that
round. This is subtracted, since it does not grow with requests, and is reported separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

DIRECT = "direct"


@dataclass(frozen=True)
class Load:
    """What the client does in a slot."""

    kind: str
    """`plain`, `stream` or `routed`."""
    num_at_once: int

    def __str__(self) -> str:
        return f"{self.kind} c={self.num_at_once}"


@dataclass(frozen=True)
class Slot:
    """One target under one load for some seconds."""

    round: int
    target: str
    load: Load
    wall_s: float
    latency_s: Sequence[float]
    """Seconds to the last byte of each reply."""
    first_s: Sequence[float]
    """Seconds to the first byte of each reply."""
    cpu_s: Mapping[str, float]
    """CPU seconds in this slot of the processes of each gateway, also of one at rest, and of the upstream."""


@dataclass(frozen=True)
class Cost:
    """What a gateway adds to a request under one load: the medians over rounds, and each round's value."""

    added_p50_ms: float
    added_first_p50_ms: float
    cpu_ms: float
    """CPU time per request, less the idle rate."""
    cpu_with_idle_ms: float
    requests_per_s: float
    added_p50_ms_by_round: tuple[float, ...]
    cpu_ms_by_round: tuple[float, ...]


def idle_cores(slots: Iterable[Slot], gateway: str, round_: int) -> float:
    """CPU seconds per second that `gateway` uses in one round while other targets are asked."""
    others = [slot for slot in slots if slot.round == round_ and slot.target != gateway]
    return sum(slot.cpu_s[gateway] for slot in others) / sum(slot.wall_s for slot in others)


def cost(
    slots: Sequence[Slot], gateway: str, load: Load, waves: int = 1, direct_load: Load | None = None
) -> Cost:
    """What `gateway` adds under `load`. Raises: ValueError if there is no such slot.

    Latency counts above that of `waves` direct requests in a row, which the upstream alone would take.
    """
    added, added_first, cpu, cpu_idle, rates = [], [], [], [], []
    for slot in slots:
        if slot.target != gateway or slot.load != load:
            continue
        direct = _only(
            s
            for s in slots
            if s.round == slot.round and s.target == DIRECT and s.load == (direct_load or load)
        )
        num_requests = len(slot.latency_s)
        idle_s = idle_cores(slots, gateway, slot.round) * slot.wall_s
        added.append(1000 * (median(slot.latency_s) - waves * median(direct.latency_s)))
        added_first.append(1000 * (median(slot.first_s) - waves * median(direct.first_s)))
        cpu.append(1000 * (slot.cpu_s[gateway] - idle_s) / num_requests)
        cpu_idle.append(1000 * slot.cpu_s[gateway] / num_requests)
        rates.append(num_requests / slot.wall_s)
    if not added:
        raise ValueError(f"no slot of {gateway!r} under {load}")
    return Cost(
        median(added),
        median(added_first),
        median(cpu),
        median(cpu_idle),
        median(rates),
        tuple(added),
        tuple(cpu),
    )


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ours over theirs by round: median, least, greatest. Raises: ValueError if theirs is not above 0."""
    if len(ours) != len(theirs) or not ours or min(theirs) <= 0:
        raise ValueError(f"nothing to compare by: ours {list(ours)}, theirs {list(theirs)}")
    by_round = [our / their for our, their in zip(ours, theirs, strict=True)]
    return median(by_round), min(by_round), max(by_round)


def _only(found: Iterable[Slot]) -> Slot:
    (slot,) = found
    return slot
