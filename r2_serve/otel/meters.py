"""Metrics of queries and calls, by the semantic conventions for generative AI."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.metrics import Meter

from r2_serve.types import CallRecord, Trace

TOKEN_EDGES = [4**power for power in range(14)]
SECOND_EDGES = [0.01 * 2**power for power in range(14)]
"""Edges of the histograms, as the conventions recommend them."""


class Meters:
    """The instruments. `providers` has the name of each model's provider."""

    def __init__(self, meter: Meter, providers: Mapping[str, str]) -> None:
        self._providers = providers
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of a model call, as they are billed.",
            explicit_bucket_boundaries_advisory=TOKEN_EDGES,
        )
        self._call_s = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Duration of a model call.",
            explicit_bucket_boundaries_advisory=SECOND_EDGES,
        )
        self._query_s = meter.create_histogram(
            "r2.query.duration",
            unit="s",
            description="Duration of a query, from its place in the queue to its answer.",
            explicit_bucket_boundaries_advisory=SECOND_EDGES,
        )
        self._usd = meter.create_counter("r2.cost", unit="USD", description="Cost of model calls.")

    def observe(self, trace: Trace) -> None:
        """Counts a query that has ended, and its calls."""
        what = {"gen_ai.agent.name": trace.model, "gen_ai.operation.name": "invoke_workflow"}
        error = {"error.type": trace.error.split(":")[0]} if trace.error else {}
        self._query_s.record(trace.duration_s, what | error)
        for call in trace.calls:
            self._observe_call(call)

    def _observe_call(self, call: CallRecord) -> None:
        what = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": call.model,
            "gen_ai.provider.name": self._providers.get(call.model, "r2"),
            "r2.stage": call.stage,
        }
        error = {"error.type": call.error} if call.error and call.outcome != "ok" else {}
        self._call_s.record(max(0.0, call.end_s - call.start_s), what | error)
        self._tokens.record(call.usage.prompt_tokens, what | {"gen_ai.token.type": "input"})
        self._tokens.record(call.usage.completion_tokens, what | {"gen_ai.token.type": "output"})
        self._usd.add(float(call.cost_usd), what)
