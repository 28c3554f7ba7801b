"""The autoscaling policy that Ray Serve's controller runs for a model's deployment:

    autoscaling_config:
      policy: {policy_function: "r2_serve.scaling.serve_policy:PlanAhead", policy_kwargs: {cold_start_s: 60}}

Serve applies its own delays, factors and bounds to the result. The policy relies on these facts of Ray Serve
2.60. A class is made once per deployment, in the controller, and called every 0.1 s, so it must never wait.
From zero replicas with requests waiting Serve starts one replica, and ignores the policy, so a wave must be
announced before it arrives to get more at once. This module is pickled by value, so the state that policies
share is in `demand_board`.
"""

from __future__ import annotations

from pathlib import Path

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

from r2_serve.config import PlanAheadConfig
from r2_serve.router.demand import ModelDemand
from r2_serve.scaling.cold_starts import read_starts, usual_start_s
from r2_serve.scaling.demand_board import latest_demand
from r2_serve.scaling.plan_ahead import Fleet, replicas_needed

KNOWN = "r2_known"
"""Key of (time, calls under way that routers knew of), for the time that Serve's own count covers."""
OTHERS_SINCE = "r2_others_since"
LATE_S = 1.0
"""A router reports a call within this time; calls that Serve counts beyond that are not a router's."""
LOWER_SINCE = "r2_lower_since"
ASKED_AT = "r2_asked_at"
"""Key of the times at which the starting replicas were asked for, the oldest first."""
State = dict[str, object]
"""What Serve keeps for the policy until its next call."""


class PlanAhead:
    """Replicas by what plans will need. The arguments are those of `PlanAheadConfig`.

    Calls that no router knows of, such as a training job's, count as in Serve's own policy. So do all calls
    while no router has written its forecast for some seconds.
    """

    def __init__(self, **kwargs: float | str | None) -> None:
        self._config = PlanAheadConfig.model_validate(kwargs)
        self._measured_s: float | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int | float, State]:
        demand = latest_demand(str(ctx.app_name))
        if demand is None:
            desired: tuple[int | float, State] = replica_queue_length_autoscaling_policy(ctx)
            return desired
        return self.decide(ctx, demand)

    def decide(self, ctx: AutoscalingContext, demand: ModelDemand) -> tuple[float, State]:
        """Replicas for `demand`, and the state for the next call."""
        config, lead_s = self._config, self._lead_s(str(ctx.app_name))
        num_others, seen = _others(ctx, demand.num_active)
        asked_at = _asked_at(ctx)
        ready_in_s = tuple(min(max(0.0, at + lead_s - ctx.current_time), lead_s) for at in asked_at)
        fleet = Fleet(ctx.current_num_replicas, ctx.config.get_target_ongoing_requests(), ready_in_s)
        needed = replicas_needed(demand, fleet, lead_s=lead_s, drain_s=config.drain_s, trend=config.trend)
        steadied, state = self._steadied(round(needed + num_others / fleet.calls_each, 3), ctx)
        return steadied, {ASKED_AT: asked_at, **seen, **state}

    def _lead_s(self, app: str) -> float:
        """The time that a replica takes to start: the measured one, where there is a file of starts.

        Raises: ConfigError if that file has none of `app`.
        """
        if self._config.cold_starts is None:
            return self._config.cold_start_s
        if self._measured_s is None:
            self._measured_s = usual_start_s(read_starts(Path(self._config.cold_starts)), app)
        return self._measured_s

    def _steadied(self, needed: float, ctx: AutoscalingContext) -> tuple[float, State]:
        """Keeps the target for `downscale_delay_s` while no replica runs; Serve itself has no delay then.

        Serve's delay for zero replicas comes on top; a rise in between does not begin that one anew.
        """
        if ctx.current_num_replicas > 0 or needed > ctx.target_num_replicas - 1:
            return needed, {}
        since_s = ctx.policy_state.get(LOWER_SINCE, ctx.current_time)
        # A clock that was set back ends the delay too.
        is_over = not 0 <= ctx.current_time - since_s < ctx.config.downscale_delay_s
        return needed if is_over else float(ctx.target_num_replicas), {LOWER_SINCE: since_s}


def _others(ctx: AutoscalingContext, num_active: int) -> tuple[int, State]:
    """Calls under way that no router knows of, and the state to keep.

    Serve's count is a late mean over its look-back period, so it is compared with the most that was known in
    that time.
    """
    covered_s = ctx.config.look_back_period_s + ctx.config.metrics_interval_s
    known = [
        (at, calls)
        for at, calls in ctx.policy_state.get(KNOWN, ())
        if 0 <= ctx.current_time - at <= covered_s and calls > num_active
    ]
    known.append((ctx.current_time, num_active))
    num_others = round(ctx.total_num_requests - max(calls for _, calls in known))
    if num_others <= 0:
        return 0, {KNOWN: known}
    since_s = min(ctx.policy_state.get(OTHERS_SINCE, ctx.current_time), ctx.current_time)
    return num_others if ctx.current_time - since_s >= LATE_S else 0, {KNOWN: known, OTHERS_SINCE: since_s}


def _asked_at(ctx: AutoscalingContext) -> list[float]:
    """Times at which the starting replicas were asked for; those asked for first are expected up first."""
    num_starting = max(0, ctx.target_num_replicas - ctx.current_num_replicas)
    known = list(ctx.policy_state.get(ASKED_AT, ()))
    return known[max(0, len(known) - num_starting) :] + [ctx.current_time] * (num_starting - len(known))
