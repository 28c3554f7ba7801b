"""Plan-ahead autoscaling in a simulation: the router's own `Demand` watches simulated queries, and its forecasts reach the policy.

Each router has a `Demand` of its own, which remembers the last few plans that it saw; forecasts of all routers add up. At ten
thousand queries a second one process cannot watch them all: one query of every `stride` is watched and stands for as many, and there are
as many watching routers as that leaves enough to see. How many calls are under way is counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from r2_serve.lab.simulate.autoscaler import Policy
from r2_serve.lab.simulate.calls import Call
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.queries import PLAN, Query
from r2_serve.router.demand import Demand, ModelDemand, total
from r2_serve.types import Allocation, CallRecord, Plan, Subtask, Work

PLAN_AHEAD = "r2_serve.scaling.serve_policy:PlanAhead"
LEAST_WATCHED = 10
"""Open queries for each watching router, about."""
PUBLISH_S = 0.25
"""Between two forecasts, as `r2_serve.scaling.demand_board` has it."""


@dataclass(frozen=True)
class Sampling:
    """Who watches what."""

    stride: int = 1
    """One query in so many is watched."""
    num_routers: int = 1

    @classmethod
    def of(cls, num_open: float, most_watched: int, num_routers: int) -> Self:
        """For about `num_open` queries at once; each router sees ten of them or more, or there are fewer routers."""
        stride = max(1, round(num_open / most_watched))
        return cls(stride, max(1, min(num_routers, round(num_open / stride / LEAST_WATCHED))))


class _Watched:
    """An open query that is watched."""

    def __init__(self, demand: Demand, name: str) -> None:
        self.demand, self.stack = demand, ExitStack()
        self.expected = self.stack.enter_context(demand.query(name))
        self.calls: dict[int, ExitStack] = {}

    def close(self) -> None:
        for call in self.calls.values():
            call.close()
        self.stack.close()


class Forecasts:
    """Told of every query by the simulated router (`r2_serve.lab.simulate.router.Plans`)."""

    def __init__(
        self,
        clock: Clock,
        name: str,
        app_of: Mapping[str, str],
        deployments: Mapping[str, Deployment],
        sampling: Sampling,
    ) -> None:
        self._clock, self._name, self._app_of, self._deployments = clock, name, app_of, deployments
        self._stride = sampling.stride
        self._demands = [Demand(lambda: clock.now) for _ in range(sampling.num_routers)]
        self._watched: dict[Query, _Watched] = {}
        self._plans: dict[int, Plan] = {}
        self._latest: dict[str, ModelDemand] = {}

    def start(self) -> None:
        self._clock.every(PUBLISH_S, self._publish, first_s=0.0)

    def demand_of(self, app: str) -> ModelDemand:
        """The latest forecast for an application."""
        return self._latest.get(app) or ModelDemand()

    # -- what the router tells ------------------------------------------------------------------------------------

    def opened(self, query: Query) -> None:
        if query.index % self._stride == 0:
            self._watched[query] = _Watched(
                self._demands[query.index // self._stride % len(self._demands)], self._name
            )

    def planning(self, query: Query, model: str, num_calls: int) -> None:
        """The planner or the picker is asked."""
        if (watched := self._watched.get(query)) is not None:
            self._begin(watched, PLAN, watched.demand.calling(model, num_calls=num_calls))

    def planned(self, query: Query) -> None:
        """And has answered."""
        if (watched := self._watched.get(query)) is not None and PLAN in watched.calls:
            watched.calls.pop(PLAN).close()

    def allocated(self, query: Query) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.expected.plan(self._plan(query), Allocation(models=query.models))

    def answered(self, query: Query, model: str, call: Call) -> None:
        if (watched := self._watched.get(query)) is not None:
            service_s = self._clock.now - call.begun_s
            work = Work(service_s=service_s, share_s=call.share_s) if call.share_s is not None else None
            watched.demand.learn(CallRecord(stage="execute", model=model, end_s=service_s, work=work))

    def started(self, query: Query, position: int) -> None:
        if (watched := self._watched.get(query)) is not None:
            self._begin(watched, position, watched.expected.calling(position + 1, query.models[position]))

    def finished(self, query: Query, position: int) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.calls.pop(position).close()

    def ended(self, query: Query) -> None:
        if (watched := self._watched.pop(query, None)) is not None:
            watched.close()

    # -- what the policy reads ------------------------------------------------------------------------------------

    def _begin(self, watched: _Watched, mark: int, context: Any) -> None:
        watched.calls[mark] = stack = ExitStack()
        stack.enter_context(context)

    def _plan(self, query: Query) -> Plan:
        """Any plan with the query's edges: of a plan's texts a forecast reads nothing."""
        inputs = query.sizes.form.edges.inputs
        key = id(query.sizes.form)
        if key not in self._plans:
            self._plans[key] = Plan(
                subtasks=tuple(
                    Subtask(id=i + 1, text="step", depends_on=tuple(n + 1 for n in needed))
                    for i, needed in enumerate(inputs)
                )
            )
        return self._plans[key]

    def _publish(self) -> None:
        forecast = total([demand.forecast() for demand in self._demands])
        by_app = [
            {self._app_of[model]: self._scaled(demand)}
            for model, demand in forecast.items()
            if model in self._app_of
        ]
        self._latest = {app: self._counted(app, demand) for app, demand in total(by_app).items()}

    def _scaled(self, demand: ModelDemand) -> ModelDemand:
        stride = self._stride
        return demand.model_copy(
            update={
                "planned": tuple(x * stride for x in demand.planned),
                "coming": tuple(x * stride for x in demand.coming),
            }
        )

    def _counted(self, app: str, demand: ModelDemand) -> ModelDemand:
        deployment = self._deployments[f"{app}/Model"]
        return demand.model_copy(update={"num_active": deployment.num_at_work + deployment.num_queued})


def reads_forecasts(autoscaling: Any) -> bool:
    """Whether an `AutoscalingConfig` names the plan-ahead policy."""
    return bool(autoscaling.policy.policy_function == PLAN_AHEAD)


def plan_ahead_policy(autoscaling: Any, read: Callable[[], ModelDemand]) -> Policy:
    """The cluster's own policy, on simulated forecasts."""
    from r2_serve.scaling.serve_policy import PlanAhead

    policy = PlanAhead(**autoscaling.policy.policy_kwargs)
    return lambda ctx: policy.decide(ctx, read())
