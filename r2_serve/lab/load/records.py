"""The records of a run: a line per request (`requests.jsonl`) and a line per second (`timeline.jsonl`).

All times are seconds from the start of the run.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field

from r2_serve.types import Record

LoadOutcome = Literal["ok", "failed", "unfinished"]
"""An `unfinished` request was under way when the run was interrupted. It counts in no figure."""


class LoadRecord(Record):
    """One request that was sent."""

    index: int
    intended_start_s: float
    sent_s: float
    first_token_s: float | None = None
    """Time of the first token; None if there was none or the reply was not streamed."""
    end_s: float
    outcome: LoadOutcome
    status: int | None = None
    """HTTP status; None if there was no reply."""
    error: str | None = None
    """A short kind, a colon and the message."""
    cost_usd: Decimal | None = None
    """Cost that the reply reports; None for failed requests and endpoints other than R2's."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_subtasks: int | None = None
    task_id: str | None = None
    """Id of the benchmark's task."""
    answer: str | None = None
    """Answer to a benchmark's task, kept for its grading."""
    correct: bool | None = None
    """Verdict; None if the answer was not graded or could not be."""

    @property
    def latency_s(self) -> float:
        """Time from the intended start to the end."""
        return self.end_s - self.intended_start_s

    @property
    def ttft_s(self) -> float | None:
        """Time from the intended start to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_start_s

    @property
    def lateness_s(self) -> float:
        """Delay by the generator itself: time from the intended start to the sending."""
        return self.sent_s - self.intended_start_s

    @property
    def error_kind(self) -> str:
        return (self.error or "").partition(":")[0]


class ReplicaCount(Record):
    """Replicas of one deployment at one moment."""

    running: int
    starting: int
    """Replicas that wait for a node or load."""
    waiting: int = 0
    """The starting ones that have no node yet, and so hold no GPU; 0 where that is not known, as on Ray."""
    stopping: int = 0
    target: int
    gpus: float = 0.0
    """GPUs of each replica: a fraction of one, or the sum over the bundles of its placement group."""


class EngineState(Record):
    """The work of all engines of one deployment at one moment."""

    running: int
    """Sequences at work; calls at replicas where engines report none."""
    waiting: int = 0
    """Sequences that wait for a place in a batch."""
    kv_use: float | None = None
    """Share of the key-value cache in use at the fullest replica; None if unknown."""


class ClusterCounts(Record):
    """What a cluster holds at one moment."""

    deployments: dict[str, ReplicaCount] = Field(default_factory=dict)
    """Replicas by APPLICATION/DEPLOYMENT; empty if they could not be counted."""
    nodes: dict[str, float] = Field(default_factory=dict)
    """GPUs in use on each node that has some and is up or boots, by the node's id; empty if unknown."""
    engines: dict[str, EngineState] = Field(default_factory=dict)
    """Engines by APPLICATION/DEPLOYMENT; empty if they could not be asked."""


class QueueState(Record):
    """Requests at all router replicas, as `/metrics` reports them."""

    running: int
    queued: int


class TimelineSample(ClusterCounts):
    """The state of a run at one moment."""

    t_s: float
    num_sent: int
    num_done: int
    """Requests that were answered or failed."""
    num_failed: int
    num_open: int
    """Requests under way."""
    spent_usd: Decimal
    """Cost of the replies so far."""
    queue: QueueState | None = None
