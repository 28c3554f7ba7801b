"""Prometheus metrics of one router process, on a registry of their own. Labels hold no ids, prompts or keys.

There are two sources: the HTTP layer counts requests, and `Metrics.observe` takes the `Trace` of every query,
answered, failed or cancelled, so give it to the pipeline as a sink. Only traces make the money complete,
because a failed request has no reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from r2_serve.calls.pool import Pool
from r2_serve.feedback import Rated
from r2_serve.http.admission import Admission
from r2_serve.http.keys import KeyRing
from r2_serve.http.spend import Purses
from r2_serve.router.router import Router
from r2_serve.types import CallRecord, Decision, RolloutNote, Trace

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Upper bounds of the buckets in which durations are counted."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)


class Metrics:
    """Counts what one router process does."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._requests = counter("r2_requests", "HTTP requests.", "route", "model", "status")
        self._request_s = histogram(
            "r2_request_seconds", "Time from the first byte in to the last byte out.", "route", "model"
        )
        self._calls = counter("r2_calls", "Model calls with retries.", "model", "stage", "outcome")
        self._call_s = histogram("r2_call_seconds", "Duration of model calls.", "model", "stage")
        self._tokens = counter("r2_tokens", "Tokens of model calls.", "model", "direction")
        self._overhead_s = histogram("r2_overhead_seconds", "Time of a query in which no subtask ran.")
        self._plan_width = histogram("r2_plan_width", "Most subtasks on one level of a plan.", buckets=_SIZES)
        self._plan_depth = histogram("r2_plan_depth", "Subtasks on a plan's longest chain.", buckets=_SIZES)
        self._fallbacks = counter(
            "r2_fallbacks", "Plans or allocations that the router had to replace.", "stage"
        )
        self._decisions = counter(
            "r2_decisions", "Routed queries, split or whole, and why.", "model", "action", "reason"
        )
        self._ratings = counter("r2_feedback", "Ratings of answers and steps.", "model", "source")
        self._scores = counter("r2_feedback_score", "Sum of the scores of ratings.", "model", "source")
        self._saved_usd: dict[tuple[str, str, str], Decimal] = {}
        self._gates = counter(
            "r2_gate_answers",
            "Models that gates asked: what became of their answers, and what decided.",
            *("model", "gate", "asked", "outcome", "evidence"),
        )
        self._costs_usd: dict[tuple[str, str], Decimal] = {}
        self._compared_usd: dict[tuple[str, str], Decimal] = {}
        self._computed(self._cost)
        self._computed(self._comparison)
        self._computed(self._savings)
        self._trials = counter(
            "r2_trial_queries", "Queries in the trial of a candidate.", "model", "candidate", "arm", "outcome"
        )
        self._trial_usd: dict[tuple[str, str, str], Decimal] = {}
        self._computed(self._trial_cost)

    def watch(self, admission: Admission) -> None:
        """Adds the queue's state."""
        running = Gauge("r2_requests_running", "Requests at work.", registry=self.registry)
        running.set_function(lambda: admission.num_running)
        queued = Gauge("r2_requests_queued", "Requests waiting.", registry=self.registry)
        queued.set_function(lambda: admission.num_queued)

    def watch_spend(self, purses: Purses, keys: KeyRing) -> None:
        """Adds budget and spend of each client key, read at each scrape: processes may share the spend."""

        def spend() -> list[Metric]:
            text = "Spend of a client key in its current budget period in USD."
            spent = GaugeMetricFamily("r2_key_spent_usd", text, labels=["key"])
            text = "Budget of a client key in USD; a key without one is left out."
            budget = GaugeMetricFamily("r2_key_budget_usd", text, labels=["key", "period"])
            for key in keys.known():
                purses.of(key)
                if key.budget_usd is not None:
                    budget.add_metric([key.name, key.budget_period], float(key.budget_usd))
            for name, usd in sorted(purses.spent_usd().items()):
                spent.add_metric([name], float(usd))
            return [spent, budget]

        self._computed(spend)

    def watch_trials(self, router: Router) -> None:
        """Adds shadows that were left out, and trials that this process has ended."""

        def trials() -> list[Metric]:
            text = "Shadows that were left out: too many ran, or the budget is used up."
            skipped = CounterMetricFamily("r2_shadows_skipped", text, labels=["model", "candidate", "reason"])
            text = "1 for a trial that this process has ended, as the candidate is worse."
            stopped = GaugeMetricFamily("r2_trial_stopped", text, labels=["model", "candidate"])
            if router.trials is not None:
                for place, count in sorted(router.trials.skipped.items()):
                    skipped.add_metric(place, count)
                for trial in sorted(router.trials.guard.stopped):
                    stopped.add_metric(trial, 1.0)
            return [skipped, stopped]

        self._computed(trials)

    def watch_models(self, pool: Pool) -> None:
        """Adds which models rest after failures, as this process sees it."""

        def rests() -> list[Metric]:
            text = "1 while calls pass the model over after its failures."
            resting = GaugeMetricFamily("r2_model_resting", text, labels=["model"])
            text = "Seconds until a call may probe a model that rests; 0 for any other."
            left = GaugeMetricFamily("r2_model_rest_left_seconds", text, labels=["model"])
            counts = CounterMetricFamily("r2_model_rests", "Times that a model was rested.", labels=["model"])
            for name, member in sorted(pool.items()):
                resting.add_metric([name], float(member.cooldown.is_resting))
                left.add_metric([name], member.cooldown.left_s())
                counts.add_metric([name], member.cooldown.num_rests)
            return [resting, left, counts]

        self._computed(rests)

    def watch_cluster(
        self,
        unavailable: Callable[[], Mapping[str, bool]],
        replicas: Callable[[], Mapping[str, int]],
        is_away: Callable[[], bool],
    ) -> None:
        """Adds the running replicas of local models, which of these take no calls, and whether the controller
        is away."""

        def state() -> list[Metric]:
            text = "1 while no replica of the local model takes calls."
            missing = GaugeMetricFamily("r2_model_unavailable", text, labels=["model"])
            for name, is_missing in sorted(unavailable().items()):
                missing.add_metric([name], float(is_missing))
            running = GaugeMetricFamily(
                "r2_model_replicas", "Running replicas of the local model.", labels=["model"]
            )
            for name, count in sorted(replicas().items()):
                running.add_metric([name], count)
            absent = GaugeMetricFamily("r2_controller_absent", "1 while Serve's controller does not answer.")
            absent.add_metric([], float(is_away()))
            return [missing, running, absent]

        self._computed(state)

    def count_request(self, route: str, model: str, status: int, duration_s: float) -> None:
        """`model` must be a name of the pool or empty, `route` one of the app's own: both become labels."""
        self._requests.labels(route, model, str(status)).inc()
        self._request_s.labels(route, model).observe(duration_s)

    def observe(self, trace: Trace) -> None:
        """Counts one query, answered or not. What shadows do and cost is counted apart."""
        if trace.rollout is not None:
            self._count_trial(trace, trace.rollout)
            if trace.rollout.arm == "shadow":
                return
        for call in trace.calls:
            self._count_call(call)
        self._overhead_s.observe(trace.overhead_s)
        if trace.plan is not None:
            self._plan_depth.observe(trace.plan.depth)
            self._plan_width.observe(trace.plan.width)
        if trace.savings is not None:
            place = (trace.client or "-", trace.model, trace.savings.baseline)
            self._saved_usd[place] = self._saved_usd.get(place, Decimal(0)) + trace.savings.saved_usd
        if trace.decision is not None:
            self._count_decision(trace, trace.decision)
        for note in (result.gate for result in trace.results if result.gate is not None):
            for ask in note.asked:
                self._gates.labels(trace.model, note.name, ask.model, ask.outcome, ask.evidence).inc()
        if trace.plan_fallback is not None:
            self._fallbacks.labels("plan").inc()
        if trace.allocation_fallback is not None:
            self._fallbacks.labels("allocation").inc()

    def count_rating(self, rated: Rated) -> None:
        """Counts one rating; one that replaces another is counted again, and its score as well."""
        self._ratings.labels(rated.model, rated.rating.source).inc()
        self._scores.labels(rated.model, rated.rating.source).inc(rated.rating.score)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _count_call(self, call: CallRecord) -> None:
        self._calls.labels(call.model, call.stage, call.outcome).inc()
        self._call_s.labels(call.model, call.stage).observe(max(0.0, call.end_s - call.start_s))
        self._tokens.labels(call.model, "in").inc(call.usage.prompt_tokens)
        self._tokens.labels(call.model, "out").inc(call.usage.completion_tokens)
        place = (call.model, call.stage)
        self._costs_usd[place] = self._costs_usd.get(place, Decimal(0)) + call.cost_usd

    def _count_trial(self, trace: Trace, note: RolloutNote) -> None:
        outcome = "ok" if trace.error is None else "failed"
        self._trials.labels(trace.model, note.candidate, note.arm, outcome).inc()
        place = (trace.model, note.candidate, note.arm)
        self._trial_usd[place] = self._trial_usd.get(place, Decimal(0)) + trace.cost_usd

    def _trial_cost(self) -> list[Metric]:
        """The exact sums of each arm; those of shadows are in no other metric."""
        text = "Cost of queries in a trial in USD; that of shadows is in no other metric."
        family = CounterMetricFamily("r2_trial_usd", text, labels=["model", "candidate", "arm"])
        for place, usd in sorted(self._trial_usd.items()):
            family.add_metric(place, float(usd))
        return [family]

    def _count_decision(self, trace: Trace, decision: Decision) -> None:
        self._decisions.labels(trace.model, decision.action, decision.reason).inc()
        if trace.error is None:
            for kind, usd in (("direct", decision.direct_usd), ("billed", trace.cost_usd)):
                place = (trace.model, kind)
                self._compared_usd[place] = self._compared_usd.get(place, Decimal(0)) + usd

    def _comparison(self) -> list[Metric]:
        """The bill of answered queries beside the expected cost of asking the default model directly."""
        text = "Cost of answered queries in USD: billed, and expected of the direct call."
        family = CounterMetricFamily("r2_compared_usd", text, labels=["model", "kind"])
        for place, usd in sorted(self._compared_usd.items()):
            family.add_metric(place, float(usd))
        return [family]

    def _savings(self) -> list[Metric]:
        """What each key's answered queries cost less than at the baseline; a gauge, as it may fall."""
        text = "Savings of answered queries in USD, since the process started; key is - without keys."
        family = GaugeMetricFamily("r2_key_saved_usd", text, labels=["key", "model", "baseline"])
        for place, usd in sorted(self._saved_usd.items()):
            family.add_metric(place, float(usd))
        return [family]

    def _cost(self) -> list[Metric]:
        """The exact decimal sums, as floats only when they are read."""
        family = CounterMetricFamily("r2_cost_usd", "Cost of model calls in USD.", labels=["model", "stage"])
        for place, usd in sorted(self._costs_usd.items()):
            family.add_metric(place, float(usd))
        return [family]

    def _computed(self, families: Callable[[], Iterable[Metric]]) -> None:
        self.registry.register(_Computed(families))


class _Computed(Collector):
    """Samples that are computed at each scrape."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()
