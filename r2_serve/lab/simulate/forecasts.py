"""Plan-ahead autoscaling in a simulation: the router's own `Demand` watches simulated queries and feeds the
policy.

Each router has its own `Demand`, which remembers the last few plans that it saw; the forecasts of all routers
add up. One process cannot watch ten thousand queries a second: one query of every `stride` is then watched
and stands for as many, and as many routers watch as still see enough. The number of calls under way is
counted, not estimated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, Self

from r2_serve.lab.simulate.autoscaler import ScalingPolicy
from r2_serve.lab.simulate.calls import SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.router import PLAN, QueryListener, SimulatedQuery
from r2_serve.lab.simulate.sizes import PlanForm
from r2_serve.router.demand import NUM_BUCKETS, Demand, ModelDemand, add_call, total
from r2_serve.types import Allocation, CallRecord, Plan, Subtask, Work

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

PLAN_AHEAD = "r2_serve.scaling.serve_policy:PlanAhead"
LEAST_WATCHED = 10
"""Open queries for each watching router, about."""
Forecast = Literal["plans", "calls", "arrivals"]
"""What a forecast knows: the plans of open queries, as the router's does; calls under way alone, as one by
rate does; or every query that will come, as an oracle would."""
HORIZON_S = 128.0
"""How far an oracle looks ahead: beyond the longest cold start."""
ONE_STEP = Plan(subtasks=(Subtask(id=1, text="step"),))
PUBLISH_S = 0.25
"""Time between two forecasts, as in `r2_serve.scaling.demand_board`."""


@dataclass(frozen=True)
class WatchedShare:
    """The share of queries that is watched."""

    stride: int = 1
    """One query in so many is watched."""
    num_routers: int = 1
    """Routers that watch."""

    @classmethod
    def of(cls, num_open: float, most_watched: int, num_routers: int) -> Self:
        """The share for about `num_open` open queries: each watching router sees ten or more."""
        stride = max(1, round(num_open / most_watched))
        return cls(stride, max(1, min(num_routers, round(num_open / stride / LEAST_WATCHED))))


class _Watched:
    """An open query that is watched."""

    def __init__(self, demand: Demand, name: str) -> None:
        self.demand, self._stack = demand, ExitStack()
        self.expected = self._stack.enter_context(demand.query(name))
        self._calls: dict[int, ExitStack] = {}

    def begin(self, mark: int, call: AbstractContextManager[object]) -> None:
        self._calls[mark] = stack = ExitStack()
        stack.enter_context(call)

    def end(self, mark: int) -> None:
        if (call := self._calls.pop(mark, None)) is not None:
            call.close()

    def close(self) -> None:
        for call in self._calls.values():
            call.close()
        self._stack.close()


class Forecasts(QueryListener):
    """Watches the queries of a simulated router."""

    def __init__(
        self,
        clock: Clock,
        name: str,
        app_of: Mapping[str, str],
        deployments: Mapping[str, Deployment],
        share: WatchedShare,
    ) -> None:
        self._clock, self._name, self._app_of, self._deployments = clock, name, app_of, deployments
        self._stride = share.stride
        self._demands = [Demand(lambda: clock.now) for _ in range(share.num_routers)]
        self._watched: dict[SimulatedQuery, _Watched] = {}
        self._plans: dict[int, Plan] = {}
        self._latest: dict[str, ModelDemand] = {}
        self._next_s = 0.0

    def demand_of(self, app: str) -> ModelDemand:
        """The latest forecast for an application, at most `PUBLISH_S` old."""
        if self._clock.now >= self._next_s:
            self._next_s = self._clock.now + PUBLISH_S
            self._publish()
        return self._latest.get(app) or ModelDemand()

    def opened(self, query: SimulatedQuery) -> None:
        if query.index % self._stride == 0:
            demand = self._demands[query.index // self._stride % len(self._demands)]
            self._watched[query] = _Watched(demand, self._name)

    def planning(self, query: SimulatedQuery, model: str, num_calls: int) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.begin(PLAN, watched.demand.calling(model, num_calls=num_calls))

    def planned(self, query: SimulatedQuery) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.end(PLAN)

    def allocated(self, query: SimulatedQuery) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.expected.plan(self._plan(query), Allocation(models=query.models))

    def answered(self, query: SimulatedQuery, model: str, call: SimulatedCall) -> None:
        if (watched := self._watched.get(query)) is not None:
            self._learn(watched.demand, model, call)

    def _learn(self, demand: Demand, model: str, call: SimulatedCall) -> None:
        service_s = self._clock.now - call.begun_s
        work = Work(service_s=service_s, share_s=call.share_s) if call.share_s is not None else None
        demand.learn(CallRecord(stage="execute", model=model, end_s=service_s, work=work))

    def started(self, query: SimulatedQuery, position: int) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.begin(position, watched.expected.calling(position + 1, query.models[position]))

    def finished(self, query: SimulatedQuery, position: int) -> None:
        if (watched := self._watched.get(query)) is not None:
            watched.end(position)

    def ended(self, query: SimulatedQuery) -> None:
        if (watched := self._watched.pop(query, None)) is not None:
            watched.close()

    def _plan(self, query: SimulatedQuery) -> Plan:
        """A plan with the query's edges. A forecast does not read its texts."""
        key = id(query.sizes.form)
        if key not in self._plans:
            subtasks = (
                Subtask(id=i, text="step", depends_on=tuple(n + 1 for n in needed))
                for i, needed in enumerate(query.sizes.form.edges.inputs, 1)
            )
            self._plans[key] = Plan(subtasks=tuple(subtasks))
        return self._plans[key]

    def _publish(self) -> None:
        by_model = total([demand.forecast() for demand in self._demands])
        known = [(self._app_of[model], demand) for model, demand in by_model.items() if model in self._app_of]
        by_app = total([{app: self._scaled(demand)} for app, demand in known])
        self._latest = {app: self._counted(app, demand) for app, demand in by_app.items()}

    def _scaled(self, demand: ModelDemand) -> ModelDemand:
        planned, coming = (
            tuple(value * self._stride for value in values) for values in (demand.planned, demand.coming)
        )
        return demand.model_copy(update={"planned": planned, "coming": coming})

    def _counted(self, app: str, demand: ModelDemand) -> ModelDemand:
        deployment = self._deployments[f"{app}/Model"]
        return demand.model_copy(update={"num_active": deployment.num_at_work + deployment.num_queued})


class CallForecasts(Forecasts):
    """A baseline that knows no plans: each model's calls under way, and how many came in the last seconds.

    It has what `Forecasts` has otherwise: the routers' own view of calls, at once, and their durations.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._calls: dict[tuple[SimulatedQuery, int], _Watched] = {}

    def opened(self, query: SimulatedQuery) -> None:
        """Knows nothing of a query but its calls."""

    def started(self, query: SimulatedQuery, position: int) -> None:
        if query.index % self._stride:
            return
        model = query.models[position]
        demand = self._demands[query.index // self._stride % len(self._demands)]
        self._calls[query, position] = watched = _Watched(demand, model)
        watched.expected.plan(ONE_STEP, Allocation(models=(model,)))
        watched.begin(position, watched.expected.calling(1, model))

    def answered(self, query: SimulatedQuery, model: str, call: SimulatedCall) -> None:
        if (watched := self._calls.get((query, call.position))) is not None:
            self._learn(watched.demand, model, call)

    def finished(self, query: SimulatedQuery, position: int) -> None:
        if (watched := self._calls.pop((query, position), None)) is not None:
            watched.close()

    def ended(self, query: SimulatedQuery) -> None:
        for position in range(len(query.models)):
            self.finished(query, position)


class ArrivalForecasts(Forecasts):
    """A baseline that cannot be had: it knows when every query of the run will come, and its plan.

    What it does not know is how long calls will wait, and what comes after `HORIZON_S`.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        app_of: Mapping[str, str],
        deployments: Mapping[str, Deployment],
        share: WatchedShare,
        arrivals: Sequence[tuple[float, PlanForm]],
    ) -> None:
        super().__init__(clock, name, app_of, deployments, share)
        self._arrivals = deque(arrivals)
        self._planning_s = 0.0

    def allocated(self, query: SimulatedQuery) -> None:
        self._planning_s = self._clock.now - query.begun_s
        super().allocated(query)

    def _publish(self) -> None:
        super()._publish()
        now_s = self._clock.now
        while self._arrivals and self._arrivals[0][0] <= now_s:
            self._arrivals.popleft()
        profiles: dict[str, list[float]] = {}
        for start_s, form in takewhile(lambda a: a[0] < now_s + HORIZON_S, self._arrivals):
            self._add_query(profiles, start_s - now_s + self._planning_s, form)
        for app in self._latest.keys() | profiles.keys():
            coming = tuple(profiles.get(app, [0.0] * NUM_BUCKETS))
            self._latest[app] = self._latest.get(app, ModelDemand()).model_copy(update={"coming": coming})

    def _add_query(self, profiles: dict[str, list[float]], after_s: float, form: PlanForm) -> None:
        """Adds the calls of a query whose plan is known in `after_s`, as if none had to wait."""
        ends_s: list[float] = []
        for model, inputs in zip(form.models, form.edges.inputs, strict=True):
            start_s = max((ends_s[i] for i in inputs), default=after_s)
            ends_s.append(start_s + self._demands[0].call_s(model))
            if model in self._app_of:
                add_call(profiles, self._app_of[model], start_s, ends_s[-1], 1.0)


def reads_forecasts(autoscaling: AutoscalingConfig) -> bool:
    """True if the plan-ahead policy is named."""
    return bool(autoscaling.policy.policy_function == PLAN_AHEAD)


def plan_ahead_policy(autoscaling: AutoscalingConfig, read: Callable[[], ModelDemand]) -> ScalingPolicy:
    """The cluster's own plan-ahead policy on the forecasts that `read` gives."""
    from r2_serve.scaling.serve_policy import PlanAhead

    policy = PlanAhead(**autoscaling.policy.policy_kwargs)
    return lambda ctx: policy.decide(ctx, read())
