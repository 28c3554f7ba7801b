"""The autoscaling policy that Ray Serve's controller runs for a model's deployment:

    autoscaling_config:
      policy: {policy_function: "r2_serve.scaling.serve_policy:PlanAhead", policy_kwargs: {cold_start_s: 60}}

Serve applies its own delays, factors and bounds to what it returns. Facts of Ray Serve 2.60 it stands on: a class is made
once per deployment, in the controller, and called every 0.1 s, so it must never wait; from zero replicas with requests
waiting Serve starts one, whatever a policy says, so that a wave must be announced before it arrives to get more at once;
this module is pickled by value, so what its policies share is in another (`demand_board`).
"""

from __future__ import annotations

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

from r2_serve.config import PlanAheadConfig
from r2_serve.router.demand import ModelDemand
from r2_serve.scaling.demand_board import latest_demand
from r2_serve.scaling.plan_ahead import Fleet, replicas_needed

KNOWN = "r2_known"
"""How many calls under way routers knew of, and when; of the time of which Serve's own count tells, those that no later one exceeds."""
OTHERS_SINCE = "r2_others_since"
LATE_S = 1.0
"""A router's word comes within this; what Serve counts beyond it for longer is not a router's."""
LOWER_SINCE = "r2_lower_since"
ASKED_AT = "r2_asked_at"
"""When each replica that is starting was asked for, the oldest first."""


class PlanAhead:
    """Replicas by what plans will need. Calls that no router knows of, as those of a training job, count as Serve's own policy counts
    them; so do all of them where no router has been heard of for some seconds."""

    def __init__(self, **kwargs: Any) -> None:
        self._config = PlanAheadConfig(**kwargs)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        demand = latest_demand(str(ctx.app_name))
        if demand is None:
            desired: tuple[int | float, dict[str, Any]] = replica_queue_length_autoscaling_policy(ctx)
            return desired
        return self.decide(ctx, demand)

    def decide(self, ctx: AutoscalingContext, demand: ModelDemand) -> tuple[float, dict[str, Any]]:
        """Replicas for `demand`, and what to remember for the next time."""
        config = self._config
        num_others, seen = _others(ctx, demand.num_active)
        asked_at = _asked_at(ctx)
        ready_in_s = tuple(
            min(max(0.0, at + config.cold_start_s - ctx.current_time), config.cold_start_s) for at in asked_at
        )
        fleet = Fleet(ctx.current_num_replicas, ctx.config.get_target_ongoing_requests(), ready_in_s)
        needed = replicas_needed(
            demand, fleet, lead_s=config.cold_start_s, drain_s=config.drain_s, trend=config.trend
        )
        steadied, state = self._steadied(round(needed + num_others / fleet.calls_each, 3), ctx)
        return steadied, {ASKED_AT: asked_at, **seen, **state}

    def _steadied(self, needed: float, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """While no replica runs yet Serve follows a policy at once, and would stop in the middle what has begun to start.

        For zero it has a delay there too, but one that a rise in between does not begin anew; so that comes on top of this one.
        """
        if ctx.current_num_replicas > 0 or needed > ctx.target_num_replicas - 1:
            return needed, {}
        since_s = ctx.policy_state.get(LOWER_SINCE, ctx.current_time)
        is_over = (
            not 0 <= ctx.current_time - since_s < ctx.config.downscale_delay_s
        )  # a clock set back ends it too
        return needed if is_over else float(ctx.target_num_replicas), {LOWER_SINCE: since_s}


def _others(ctx: AutoscalingContext, num_active: int) -> tuple[int, dict[str, Any]]:
    """Calls under way that no router knows of, and what to remember.

    Serve's count is a mean over its look-back period, and reported late; so what is known is the most of all that time.
    """
    told_of_s = ctx.config.look_back_period_s + ctx.config.metrics_interval_s
    recent = [
        (at, calls)
        for at, calls in ctx.policy_state.get(KNOWN, ())
        if 0 <= ctx.current_time - at <= told_of_s
    ]
    known = [*((at, calls) for at, calls in recent if calls > num_active), (ctx.current_time, num_active)]
    num_others = round(ctx.total_num_requests - max(calls for _, calls in known))
    if num_others <= 0:
        return 0, {KNOWN: known}
    since_s = min(ctx.policy_state.get(OTHERS_SINCE, ctx.current_time), ctx.current_time)
    return num_others if ctx.current_time - since_s >= LATE_S else 0, {KNOWN: known, OTHERS_SINCE: since_s}


def _asked_at(ctx: AutoscalingContext) -> list[float]:
    """Of the replicas that are starting now. Those asked for first are taken to be the first to come up."""
    num_starting = max(0, ctx.target_num_replicas - ctx.current_num_replicas)
    known = list(ctx.policy_state.get(ASKED_AT, ()))
    return known[max(0, len(known) - num_starting) :] + [ctx.current_time] * (num_starting - len(known))
