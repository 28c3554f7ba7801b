"""Ray Serve's autoscaler on the simulated clock: its own code decides, on the numbers that it would have had.

`_apply_autoscaling_config` is a private name of Ray, and its module's `time` is replaced while a simulation
runs. Ray is pinned, and a test compares the decisions with those of `DeploymentAutoscalingState`.
Source: Ray Serve 2.60, `autoscaling_policy.py` and `_private/autoscaling_state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeAlias

from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.metrics_path import HandleReports

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

ScalingPolicy: TypeAlias = "Callable[[AutoscalingContext], tuple[float, dict[str, object]]]"
"""A deployment's policy: it turns a context into a number of replicas, before bounds, and a state."""


@dataclass
class ScaledDeployment:
    """An autoscaled deployment."""

    app: str
    deployment: Deployment
    reports: HandleReports
    config: AutoscalingConfig
    policy: ScalingPolicy
    """The policy with Serve's delays and factors around it."""
    state: dict[str, object] = field(default_factory=dict)
    last_up_s: float | None = None
    last_down_s: float | None = None
    num_decisions: int = 0


def with_delays(policy: ScalingPolicy) -> ScalingPolicy:
    """Adds what Serve adds to a policy: the start from zero, factors, delays."""
    from ray.serve.autoscaling_policy import _apply_autoscaling_config

    wrapped: ScalingPolicy = _apply_autoscaling_config(policy)
    return wrapped


class Autoscaler:
    """The part of Serve's control loop that scales."""

    def __init__(self, clock: Clock, scaled: Sequence[ScaledDeployment]) -> None:
        self._clock, self._scaled = clock, scaled

    def decide(self) -> None:
        """Runs one round."""
        for scaled in self._scaled:
            self._decide(scaled)

    def _decide(self, scaled: ScaledDeployment) -> None:
        deployment, config = scaled.deployment, scaled.config
        try:
            wanted, scaled.state = scaled.policy(self._context(scaled))
        except Exception as e:
            raise ConfigError(
                f"the autoscaling policy of {deployment.name} fails: {type(e).__name__}: {e}"
            ) from e
        bounded = max(config.min_replicas, min(config.max_replicas, math.ceil(wanted)))
        before = deployment.target_num_replicas
        if bounded == before:
            return
        scaled.num_decisions += 1
        if bounded > before:
            scaled.last_up_s = self._clock.now
        else:
            scaled.last_down_s = self._clock.now
        deployment.scale_to(bounded)

    def _context(self, scaled: ScaledDeployment) -> AutoscalingContext:
        from ray.serve.config import AutoscalingContext

        deployment, reports, config = scaled.deployment, scaled.reports, scaled.config
        return AutoscalingContext(
            deployment_id=(scaled.app, deployment.name),
            deployment_name=deployment.name,
            app_name=scaled.app,
            current_num_replicas=len(deployment.running),
            target_num_replicas=deployment.target_num_replicas,
            running_replicas=deployment.running,
            total_num_requests=reports.total_requests,
            total_queued_requests=reports.queued_requests,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=dict(scaled.state),
            last_scale_up_time=scaled.last_up_s,
            last_scale_down_time=scaled.last_down_s,
            current_time=self._clock.now,
            config=config,
        )


@contextmanager
def serve_reads(clock: Clock, scaled: Sequence[ScaledDeployment]) -> Iterator[None]:
    """Gives Serve's policy module the time of `clock`. Ray is not imported if nothing is scaled."""
    if not scaled:
        yield
        return
    from ray.serve import autoscaling_policy

    real = autoscaling_policy.time
    autoscaling_policy.time = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    try:
        yield
    finally:
        autoscaling_policy.time = real
