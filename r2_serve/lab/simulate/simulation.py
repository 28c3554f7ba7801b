"""One simulated run: requests come when the workload says, and the run goes on until the last is answered."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.autoscaler import Autoscaler, Policy, serve_reads
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.forecasts import Forecasts, Sampling, plan_ahead_policy, reads_forecasts
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.results import Recorder, Run
from r2_serve.lab.simulate.router import Router
from r2_serve.lab.simulate.sizes import Sizer, Sizes, passed_through
from r2_serve.lab.simulate.system import MakePolicy, System, build_system, own_policy
from r2_serve.lab.workload import Request, Workload
from r2_serve.lab.workload.arrivals import TraceArrivals, rate_at
from r2_serve.router.demand import ModelDemand
from r2_serve.serve_config import ServeConfig

TIMEOUT_CHECKS_PER_TIMEOUT = 100
LONGEST_CHECK_INTERVAL_S = 1.0
EXPECTED_LATENCY_S = 10.0
"""For how many queries are open at once, roughly."""
Progress = Callable[[float, int, int], None]
"""Simulated seconds, queries that came, queries that ended."""


@dataclass(frozen=True)
class Options:
    """How to run, beside what."""

    seed: int | None = None
    """None: the workload's own."""
    sample_s: float = 1.0
    """Between two lines of the timeline."""
    most_watched: int = 200
    """Open queries that plan-ahead forecasts are made from, about; where there are more, each stands for several."""
    progress_s: float = 2.0
    """Wall-clock seconds between two reports of progress."""


def simulate(
    config: ServeConfig,
    workload: Workload,
    hardware: Hardware,
    options: Options | None = None,
    *,
    make_policy: MakePolicy | None = None,
    progress: Progress | None = None,
) -> Run:
    """What the run would have come to. Raises: ConfigError where config, workload and hardware do not fit each other."""
    return _Simulation(config, workload, hardware, options or Options(), make_policy, progress).run()


class _Simulation:
    def __init__(
        self,
        config: ServeConfig,
        workload: Workload,
        hardware: Hardware,
        options: Options,
        make_policy: MakePolicy | None,
        progress: Progress | None,
    ) -> None:
        seed = workload.seed if options.seed is None else options.seed
        self._clock, self._options, self._progress = Clock(), options, progress
        self._overheads, self._recorder = hardware.overheads, Recorder()
        draw, model = random.Random(f"{seed}/simulation"), workload.tasks.model
        self._forecasts: Forecasts | None = None
        self._system = build_system(
            config, hardware, model, clock=self._clock, draw=draw, make_policy=make_policy or self._policy
        )
        self._router = _router(
            config, self._system, self._clock, self._recorder, draw, hardware.overheads.hop_s
        )
        if any(reads_forecasts(scaled.config) for scaled in self._system.scaled):
            self._forecasts = self._router.plans = _forecasts(
                config, workload, self._system, self._clock, options.most_watched
            )
        self._size = _sizer(config, hardware, model, self._system)
        self._requests = workload.requests(seed)
        self._is_sending = True
        self._reported_s = time.monotonic()
        self._is_over = self._clock.event()
        self._recorder.idle = self._end_if_idle

    def _policy(self, app: str, autoscaling: Any) -> Policy:
        """The one that the config names; the cluster's own plan-ahead policy reads the simulated forecasts."""
        if not reads_forecasts(autoscaling):
            return own_policy(app, autoscaling)
        return plan_ahead_policy(
            autoscaling, lambda: self._forecasts.demand_of(app) if self._forecasts else ModelDemand()
        )

    def run(self) -> Run:
        clock, began_s = self._clock, time.monotonic()
        first = next(self._requests, None)
        if first is None:
            raise ConfigError("the workload has no requests: is its duration too short for its rate?")
        clock.after(first.start_s + self._overheads.http_s, self._arrives, first)
        if self._forecasts is not None:
            self._forecasts.start()
        if self._system.scaled:
            clock.every(self._overheads.control_interval_s, Autoscaler(clock, self._system.scaled).decide)
        check_s = min(
            LONGEST_CHECK_INTERVAL_S, self._router.shortest_timeout_s() / TIMEOUT_CHECKS_PER_TIMEOUT
        )
        clock.every(check_s, self._router.check_timeouts)
        clock.every(self._options.sample_s, self._sample, first_s=0.0)
        with serve_reads(clock, self._system.scaled), _without_collection():
            clock.run(until=self._is_over)
        self._sample()
        return self._recorder.run(
            self._system, clock.now, num_events=clock.num_events(), wall_s=time.monotonic() - began_s
        )

    def _arrives(self, request: Request) -> None:
        """At the router: all of the HTTP overhead is spent on the way there."""
        self._recorder.came()
        self._router.arrives(request.index, request.start_s, self._size(request))
        following = next(self._requests, None)
        if following is None:
            self._is_sending = False
            self._end_if_idle()
        else:
            due_s = following.start_s + self._overheads.http_s - self._clock.now
            self._clock.after(max(0.0, due_s), self._arrives, following)

    def _sample(self) -> None:
        self._recorder.sample(self._clock.now, self._system, self._router)
        if self._progress is not None and time.monotonic() - self._reported_s >= self._options.progress_s:
            self._reported_s = time.monotonic()
            self._progress(self._clock.now, self._recorder.num_came, self._recorder.num_ended)

    def _end_if_idle(self) -> None:
        if (
            not self._is_sending
            and self._recorder.num_ended == self._recorder.num_came
            and not self._is_over.triggered
        ):
            self._is_over.succeed()


def _router(
    config: ServeConfig, system: System, clock: Clock, recorder: Recorder, draw: random.Random, hop_s: float
) -> Router:
    return Router(
        clock=clock,
        limits=config.routing.limits,
        virtual=system.virtual,
        models=system.models,
        router=system.router,
        decomposer=system.decomposer,
        allocator=system.allocator,
        outcomes=recorder,
        plans=None,
        draw=draw,
        stage_hop_s=hop_s,
    )


def _forecasts(
    config: ServeConfig, workload: Workload, system: System, clock: Clock, most_watched: int
) -> Forecasts:
    app_of = {card.name: card.engine.app for card in config.router.models if card.engine.kind == "served"}
    sampling = Sampling.of(
        peak_rate_per_s(workload) * EXPECTED_LATENCY_S, most_watched, len(system.router.running)
    )
    return Forecasts(clock, workload.tasks.model, app_of, system.deployments, sampling)


def peak_rate_per_s(workload: Workload) -> float:
    """Roughly; 0 for a trace, which is watched whole."""
    arrivals = workload.arrivals
    if isinstance(arrivals, TraceArrivals) or workload.duration_s is None:
        return 0.0
    moments = [workload.duration_s * i / 100 for i in range(101)]
    return max(rate_at(arrivals, moment, workload.duration_s) for moment in moments)


def _sizer(config: ServeConfig, hardware: Hardware, model: str, system: System) -> Callable[[Request], Sizes]:
    cards = {card.name: card for card in config.router.models}
    if system.virtual is None:
        return lambda request: passed_through(request, model, hardware.tokens_per_word)
    return Sizer(system.virtual, cards, config.routing.limits.max_subtasks, hardware.tokens_per_word).of


@contextmanager
def _without_collection() -> Iterator[None]:
    """Calls and queries are freed by their reference counts but for small cycles; looking for those takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
