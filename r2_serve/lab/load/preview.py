"""The requests that a workload would send, as text for `--dry-run`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from r2_serve.errors import counted
from r2_serve.lab.workload import Request, Workload

NUM_BARS = 24
_BAR_WIDTH = 50


@dataclass
class Preview:
    """Totals of a workload."""

    num_requests: int = 0
    end_s: float = 0.0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    first: Request | None = None
    calls: Counter[str] = field(default_factory=Counter)
    """Subtasks by pool model, if the tasks bring their plan."""
    per_second: Counter[int] = field(default_factory=Counter)


def preview(workload: Workload, seed: int | None = None) -> Preview:
    """Draws every request once. Raises: ConfigError, BenchmarkError."""
    totals = Preview()
    for request in workload.requests(seed):
        totals.first = totals.first or request
        totals.num_requests += 1
        totals.end_s = request.start_s
        totals.per_second[int(request.start_s)] += 1
        totals.prompt_tokens += request.prompt_tokens
        for step in request.steps or ():
            totals.reply_tokens += step.reply_tokens
            totals.calls[step.model] += 1
    totals.end_s = workload.duration_s or totals.end_s
    return totals


def preview_lines(workload: Workload, totals: Preview) -> Iterator[str]:
    """Count, tokens, the rate over time as bars, and the first request."""
    sent = f"{counted(totals.num_requests, 'request')} to {workload.tasks.model}"
    yield f"{workload.name}: {sent} in {totals.end_s:g} s"
    if totals.first is None:
        return
    rate_per_s = totals.num_requests / max(totals.end_s, 1e-9)
    yield f"mean {rate_per_s:.3g}/s; {totals.prompt_tokens:,} words of queries"
    if totals.calls:
        calls = ", ".join(f"{count} x {model}" for model, count in totals.calls.most_common())
        yield f"{counted(totals.calls.total(), 'subtask')} ({calls}) for {totals.reply_tokens:,} words"
    yield ""
    yield from _bars(totals)
    yield ""
    text = totals.first.text if len(totals.first.text) <= 300 else f"{totals.first.text[:300]}..."
    yield f"first, at {totals.first.start_s:.3f} s: {text}"


def _bars(totals: Preview) -> Iterator[str]:
    width_s = max(1, math.ceil(totals.end_s / NUM_BARS))
    counts: Counter[int] = Counter()
    for second, count in totals.per_second.items():
        counts[second // width_s] += count
    most = max(counts.values())
    for i in range(math.ceil(totals.end_s / width_s) or 1):
        bar = "█" * round(_BAR_WIDTH * counts[i] / most)
        yield f"{i * width_s:>7} s {counts[i] / width_s:>8.2f}/s {bar}"
