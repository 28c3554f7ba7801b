"""What a run writes down: a line per request (`requests.jsonl`) and a line per second (`timeline.jsonl`).

All times are seconds from the start of the run.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field

from r2_serve.types import Record

Outcome = Literal["ok", "failed", "unfinished"]
"""`unfinished`: the run was interrupted while it was under way; it counts nowhere else."""


class RequestRecord(Record):
    """One request that was sent."""

    index: int
    intended_start_s: float
    sent_s: float
    first_token_s: float | None = None
    """None where nothing came, or where replies were not streamed."""
    end_s: float
    outcome: Outcome
    status: int | None = None
    """HTTP status; None where there was no reply."""
    error: str | None = None
    """A short kind, a colon, and what was said."""
    cost_usd: Decimal | None = None
    """None where the reply did not tell it: failed requests, endpoints that are not R2's."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_subtasks: int | None = None
    task_id: str | None = None
    """Of a benchmark's task."""
    answer: str | None = None
    """Kept where there is a task, for its grading."""
    correct: bool | None = None
    """None where it was not graded, or could not be."""

    @property
    def latency_s(self) -> float:
        """From when it was to be sent."""
        return self.end_s - self.intended_start_s

    @property
    def ttft_s(self) -> float | None:
        """To the first token, from when it was to be sent."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_start_s

    @property
    def lateness_s(self) -> float:
        """The generator's own: from when it was to be sent to when it was."""
        return self.sent_s - self.intended_start_s

    @property
    def error_kind(self) -> str:
        return (self.error or "").partition(":")[0]


class ReplicaCount(Record):
    """Replicas of one deployment at one moment."""

    running: int
    starting: int
    """Asked for and not ready: waiting for a node or loading. A GPU is paid from here on."""
    stopping: int = 0
    target: int
    gpus: float = 0.0
    """Of each replica."""


class QueueState(Record):
    """What the router's replicas say of themselves together, in /metrics."""

    running: int
    queued: int


class TimelineSample(Record):
    """The state of a run at one moment."""

    t_s: float
    num_sent: int
    num_done: int
    """Answered or failed."""
    num_failed: int
    num_open: int
    """Under way."""
    spent_usd: Decimal
    """Of the replies so far."""
    queue: QueueState | None = None
    deployments: dict[str, ReplicaCount] = Field(default_factory=dict)
    """By APPLICATION/DEPLOYMENT; empty where nobody could be asked."""
