"""Prometheus metrics of one router process, on a registry of their own. No ids, prompts or keys in labels.

Two sources: the HTTP layer counts requests; `Metrics.observe` takes the `Trace` of every query, answered, failed or
cancelled, so give it to the pipeline as a sink. Only that makes the money complete: a failed request has no reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from r2_serve.calls.pool import Pool
from r2_serve.http.admission import Admission
from r2_serve.http.spend import Purses
from r2_serve.types import CallRecord, Trace

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of the buckets in which durations are counted."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)


class _Spend(Collector):
    """Cost as an exact decimal sum, turned into a float when it is read and not before."""

    def __init__(self) -> None:
        self._usd: dict[tuple[str, str], Decimal] = {}

    def add(self, call: CallRecord) -> None:
        key = (call.model, call.stage)
        self._usd[key] = self._usd.get(key, Decimal(0)) + call.cost_usd

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("r2_cost_usd", "Cost of model calls in USD.", labels=["model", "stage"])
        for key, usd in sorted(self._usd.items()):
            family.add_metric(list(key), float(usd))
        yield family


class _KeySpend(Collector):
    """Read when asked: the book of spend may be shared with other processes."""

    def __init__(self, purses: Purses) -> None:
        self._purses = purses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "r2_key_spent_usd", "Spend of a client key in its current budget period in USD.", labels=["key"]
        )
        for name, usd in sorted(self._purses.spent_usd().items()):
            family.add_metric([name], float(usd))
        yield family


class _Rests(Collector):
    """Reads the cooldown of every model of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        resting = GaugeMetricFamily(
            "r2_model_resting", "1 while calls pass the model over after its failures.", labels=["model"]
        )
        rests = CounterMetricFamily("r2_model_rests", "Times that a model was rested.", labels=["model"])
        for name, member in sorted(self._pool.items()):
            resting.add_metric([name], float(member.cooldown.is_resting))
            rests.add_metric([name], member.cooldown.num_rests)
        yield resting
        yield rests


class Metrics:
    """Counts what one router process does."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "r2_requests", "HTTP requests.", ["route", "model", "status"], registry=registry
        )
        self._request_s = Histogram(
            "r2_request_seconds",
            "From first byte in to last byte out.",
            ["route", "model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._calls = Counter(
            "r2_calls", "Model calls, retries among them.", ["model", "stage", "outcome"], registry=registry
        )
        self._call_s = Histogram(
            "r2_call_seconds",
            "Duration of model calls.",
            ["model", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "r2_tokens", "Tokens of model calls.", ["model", "direction"], registry=registry
        )
        self._overhead_s = Histogram(
            "r2_overhead_seconds",
            "Time of a query in which no subtask ran.",
            buckets=SECONDS,
            registry=registry,
        )
        self._plan_width = Histogram(
            "r2_plan_width", "Most subtasks on one level of a plan.", buckets=_SIZES, registry=registry
        )
        self._plan_depth = Histogram(
            "r2_plan_depth", "Subtasks on a plan's longest chain.", buckets=_SIZES, registry=registry
        )
        self._fallbacks = Counter(
            "r2_fallbacks",
            "Plans or allocations that the router had to replace.",
            ["stage"],
            registry=registry,
        )
        self._spend = _Spend()
        registry.register(self._spend)

    def watch(self, admission: Admission) -> None:
        """Shows the queue's state from now on."""
        Gauge("r2_requests_running", "Requests at work.", registry=self.registry).set_function(
            lambda: admission.num_running
        )
        Gauge("r2_requests_queued", "Requests waiting.", registry=self.registry).set_function(
            lambda: admission.num_queued
        )

    def watch_spend(self, purses: Purses) -> None:
        """Shows from now on what each client key has spent in its current period."""
        self.registry.register(_KeySpend(purses))

    def watch_models(self, pool: Pool) -> None:
        """Shows which models rest after failures, as this process sees it, from now on."""
        self.registry.register(_Rests(pool))

    def count_request(self, route: str, model: str, status: int, duration_s: float) -> None:
        """`model` must be a name of the pool or empty, `route` one of the app's own: both become labels."""
        self._requests.labels(route, model, str(status)).inc()
        self._request_s.labels(route, model).observe(duration_s)

    def observe(self, trace: Trace) -> None:
        """Takes in one query, whatever came of it."""
        for call in trace.calls:
            self._count_call(call)
        self._overhead_s.observe(trace.overhead_s)
        if trace.plan is not None:
            self._plan_depth.observe(trace.plan.depth)
            self._plan_width.observe(trace.plan.width)
        if trace.plan_fallback is not None:
            self._fallbacks.labels("plan").inc()
        if trace.allocation_fallback is not None:
            self._fallbacks.labels("allocation").inc()

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def _count_call(self, call: CallRecord) -> None:
        self._calls.labels(call.model, call.stage, call.outcome).inc()
        self._call_s.labels(call.model, call.stage).observe(max(0.0, call.end_s - call.start_s))
        self._tokens.labels(call.model, "in").inc(call.usage.prompt_tokens)
        self._tokens.labels(call.model, "out").inc(call.usage.completion_tokens)
        self._spend.add(call)
