"""One simulated run: requests come when the workload says, and the run goes on until the last is answered."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.autoscaler import Autoscaler, ScalingPolicy, serve_reads
from r2_serve.lab.simulate.choices import check_choices
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.forecasts import (
    ArrivalForecasts,
    CallForecasts,
    Forecast,
    Forecasts,
    WatchedShare,
    plan_ahead_policy,
    reads_forecasts,
)
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.results import Recorder, SimulatedRun, SimulationFacts
from r2_serve.lab.simulate.router import SimulatedRouter
from r2_serve.lab.simulate.sizes import Sizer, Sizes, passed_through
from r2_serve.lab.simulate.system import System, SystemBuilder, check_failures, own_policy
from r2_serve.lab.workload import Request, Workload
from r2_serve.lab.workload.arrivals import TraceArrivals
from r2_serve.lab.workload.failures import NodeDies, ReplicaDies
from r2_serve.router.demand import ModelDemand
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import MODEL

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

TIMEOUT_CHECKS_PER_TIMEOUT = 100
LONGEST_CHECK_INTERVAL_S = 1.0
SAMPLE_S = 1.0
"""Simulated time between two lines of the timeline."""
PROGRESS_S = 2.0
"""Wall-clock time between two reports of progress."""
EXPECTED_LATENCY_S = 10.0
"""Gives a rough number of queries that are open at once."""
Progress = Callable[[float, int, int], None]
"""Is called with simulated seconds, queries that came and queries that ended."""


@dataclass(frozen=True)
class SimulationOptions:
    """Options of a run besides its three files."""

    seed: int | None = None
    """Seed in place of the workload's own."""
    most_watched: int = 200
    """Open queries, about, that forecasts watch; if there are more, each stands for several."""
    forecast: Forecast = "plans"
    """What plan-ahead's forecast knows."""


def simulate(
    config: ServeConfig,
    workload: Workload,
    hardware: Hardware,
    options: SimulationOptions | None = None,
    *,
    progress: Progress | None = None,
) -> SimulatedRun:
    """Simulates a run. Raises: ConfigError if config, workload and hardware do not fit together."""
    return _Simulation(config, workload, hardware, options or SimulationOptions(), progress).run()


class _Simulation:
    def __init__(
        self,
        config: ServeConfig,
        workload: Workload,
        hardware: Hardware,
        options: SimulationOptions,
        progress: Progress | None,
    ) -> None:
        seed, model = workload.seed if options.seed is None else options.seed, workload.tasks.model
        if model in config.routing.virtual_models:
            check_choices(config.routing, model)
        self._hardware, self._progress, self._requests = hardware, progress, workload.requests(seed)
        self._clock, self._recorder = Clock(), Recorder(self._end_if_idle)
        self._forecasts: Forecasts | None = None
        self._seed = seed
        draw = random.Random(f"{seed}/simulation")
        self._system = SystemBuilder(config, hardware, self._clock, draw, self._policy).build(model)
        self._router = SimulatedRouter(self._system, self._clock, draw, self._recorder.ended)
        self._size = _sizer(config, hardware, model, self._system)
        if any(reads_forecasts(scaled.config) for scaled in self._system.scaled):
            self._forecasts = self._router.listener = self._make_forecasts(config, workload, options)
        self._failures = workload.failures
        check_failures(self._system, workload.failures)
        self._is_sending, self._reported_s = True, time.monotonic()

    def _make_forecasts(
        self, config: ServeConfig, workload: Workload, options: SimulationOptions
    ) -> Forecasts:
        """The forecasts of the kind that `options` name."""
        cards = config.router.models
        app_of = {card.name: card.engine.app for card in cards if card.engine.kind == "served"}
        num_open = peak_rate_per_s(workload) * EXPECTED_LATENCY_S
        share = WatchedShare.of(num_open, options.most_watched, len(self._system.router.running))
        parts = (self._clock, workload.tasks.model, app_of, self._system.deployments, share)
        if options.forecast == "arrivals":
            http_s = self._hardware.overheads.http_s
            known = [(r.start_s + http_s, self._size(r).form) for r in workload.requests(self._seed)]
            return ArrivalForecasts(*parts, known)
        return (CallForecasts if options.forecast == "calls" else Forecasts)(*parts)

    def _policy(self, app: str, autoscaling: AutoscalingConfig) -> ScalingPolicy:
        """The policy that the config names; the plan-ahead policy reads the simulated forecasts."""
        if not reads_forecasts(autoscaling):
            return own_policy(app, autoscaling)
        return plan_ahead_policy(
            autoscaling, lambda: self._forecasts.demand_of(app) if self._forecasts else ModelDemand()
        )

    def run(self) -> SimulatedRun:
        clock, overheads, system, began_s = (
            self._clock,
            self._hardware.overheads,
            self._system,
            time.monotonic(),
        )
        first = next(self._requests, None)
        if first is None:
            raise ConfigError("the workload has no requests: is its duration too short for its rate?")
        clock.after(first.start_s + overheads.http_s, self._arrives, first)
        if system.scaled:
            clock.every(overheads.control_interval_s, Autoscaler(clock, system.scaled).decide)
        check_s = min(LONGEST_CHECK_INTERVAL_S, system.shortest_timeout_s / TIMEOUT_CHECKS_PER_TIMEOUT)
        clock.every(check_s, self._router.check_timeouts)
        clock.every(SAMPLE_S, self._sample, first_s=0.0)
        for failure in self._failures:
            clock.after(failure.at_s, self._fail, failure)
        with serve_reads(clock, system.scaled), _without_collection():
            clock.run()
        self._sample()
        facts = self._facts(time.monotonic() - began_s)
        return SimulatedRun(self._recorder.queries, self._recorder.timeline, clock.now, facts)

    def _fail(self, failure: ReplicaDies | NodeDies) -> None:
        if isinstance(failure, NodeDies):
            self._system.machines.kill_node()
        else:
            self._system.deployments[f"{failure.app}/{MODEL}"].kill_one()

    def _arrives(self, request: Request) -> None:
        """Brings a request to the router. All of the HTTP overhead is spent on the way there."""
        self._recorder.counts.num_sent += 1
        self._router.arrives(request.index, request.start_s, self._size(request))
        following = next(self._requests, None)
        if following is None:
            self._is_sending = False
            self._end_if_idle()
        else:
            due_s = following.start_s + self._hardware.overheads.http_s - self._clock.now
            self._clock.after(max(0.0, due_s), self._arrives, following)

    def _sample(self) -> None:
        self._recorder.sample(self._clock.now, self._router)
        if self._progress is not None and time.monotonic() - self._reported_s >= PROGRESS_S:
            self._reported_s = time.monotonic()
            counts = self._recorder.counts
            self._progress(self._clock.now, counts.num_sent, counts.num_done)

    def _end_if_idle(self) -> None:
        if not self._is_sending and self._recorder.counts.num_open == 0:
            self._clock.stop()

    def _facts(self, wall_s: float) -> SimulationFacts:
        machines = self._system.machines
        return SimulationFacts(
            num_decisions={scaled.deployment.name: scaled.num_decisions for scaled in self._system.scaled},
            paid_usd=machines.cost_usd(),
            paid_gpu_s=machines.paid_gpu_seconds,
            node_s=machines.node_seconds,
            num_events=self._clock.num_actions(),
            num_subtasks=self._recorder.num_subtasks,
            wall_s=wall_s,
            hardware=self._hardware,
        )


def peak_rate_per_s(workload: Workload) -> float:
    """The highest rate, roughly; 0 for a trace, whose queries are all watched."""
    arrivals, duration_s = workload.arrivals, workload.duration_s
    if isinstance(arrivals, TraceArrivals) or duration_s is None:
        return 0.0
    return max(arrivals.rate_at(duration_s * i / 100, duration_s) for i in range(101))


def _sizer(config: ServeConfig, hardware: Hardware, model: str, system: System) -> Callable[[Request], Sizes]:
    cards = {card.name: card for card in config.router.models}
    if system.virtual is None:
        return lambda request: passed_through(request, model, hardware.tokens_per_word)
    return Sizer(system.virtual, cards, config.routing.limits.max_subtasks, hardware.tokens_per_word).of


@contextmanager
def _without_collection() -> Iterator[None]:
    """Stops the search for reference cycles, which would take a third of the time and find few."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
