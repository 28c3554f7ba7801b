"""The settings of the autoscaling policy, and when calls move to another model."""

from __future__ import annotations

from pydantic import Field

from r2_serve.config.engines import Config


class PlanAheadConfig(Config):
    """`policy_kwargs` of the autoscaling policy `r2_serve.scaling.serve_policy:PlanAhead`."""

    cold_start_s: float = Field(default=60.0, gt=0)
    """Seconds from asking for a replica to its first call, on a node that is up.

    Measure it: if it is too low, replicas come too late; if it is too high, they wait for work.
    """
    cold_starts: str | None = None
    """File or directory of logs on the head's node with the cold starts of the past: three of four were as
    quick as the time that then takes the place of `cold_start_s`. None uses `cold_start_s`."""
    drain_s: float = Field(default=5.0, gt=0)
    """Seconds in which a new replica should be through with the calls that wait for it."""
    trend: float = Field(default=1.0, ge=0, le=1)
    """Share of the present arrival rate that is expected to go on; 0 plans for present queries only."""


class SpillConfig(Config):
    """Sends a subtask whose model has no room to the next cheapest model of the pool that has."""

    calls_per_replica: float = Field(gt=0)
    """Calls in progress at which a replica of a local model has no room: `target_ongoing_requests` or more.
    A model without a replica has no room; a hosted model has room unless it rests after failures."""
