"""Sends the spans and the metrics of queries to a collector by OTLP over HTTP, in threads of the SDK.

A query waits for nothing here. Where the collector is down or slow, spans are dropped once the queue of the
SDK is full, which logs that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from r2_serve import __version__
from r2_serve.config import HostedEngineConfig, ModelConfig, OtelConfig
from r2_serve.config.providers import provider_at
from r2_serve.errors import ConfigError
from r2_serve.otel.meters import Meters
from r2_serve.otel.spans import SpansOf
from r2_serve.types import Trace

FLUSH_MS = 2_000
"""How long the end of the process waits for the last spans, and then for the last metrics."""
EXPORT_S = 3.0
"""Longest time of one export with its retries, so that the end of a process does not wait for a collector."""
_PROVIDERS = {"google": "gcp.gemini", "mistral": "mistral_ai", "xai": "x_ai"}
"""Names of the semantic conventions, by ours where they differ."""


class Telemetry:
    """A sink of traces."""

    def __init__(
        self,
        config: OtelConfig,
        models: tuple[ModelConfig, ...],
        *,
        redact: Callable[[str], str] = str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises: ConfigError if the variable of the collector's headers is not set."""
        base, headers = config.endpoint.rstrip("/"), _headers(config)
        resource = Resource.create({"service.name": "r2-serve", "service.version": __version__})
        providers = {model.name: _provider(model) for model in models}
        self._spans = BatchSpanProcessor(
            OTLPSpanExporter(f"{base}/v1/traces", headers=headers, timeout=EXPORT_S)
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", headers=headers, timeout=EXPORT_S),
            export_interval_millis=config.metrics_every_s * 1_000,
        )
        self._meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._meters = Meters(self._meter_provider.get_meter("r2_serve", __version__), providers)
        self._spans_of = SpansOf(resource, providers, redact, has_content=config.content)
        self._wall_clock = wall_clock

    def __call__(self, trace: Trace) -> None:
        self._meters.observe(trace)
        for span in self._spans_of(trace, self._wall_clock()):
            self._spans.on_end(span)

    def close(self) -> None:
        """Sends what is left, for at most a few seconds."""
        self._spans.force_flush(FLUSH_MS)
        self._spans.shutdown()  # type: ignore[no-untyped-call]
        self._meter_provider.shutdown(FLUSH_MS)


def _headers(config: OtelConfig) -> Mapping[str, str]:
    if config.headers_env is None:
        return {}
    text = os.environ.get(config.headers_env, "")
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(name.strip() and sign for name, sign, _ in pairs):
        raise ConfigError(
            f"environment variable {config.headers_env} must hold headers for server.otel as "
            "name=value,name=value"
        )
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _provider(model: ModelConfig) -> str:
    """The provider's name by the conventions, else the host that is asked, or the engine of a local model."""
    engine = model.engine
    if not isinstance(engine, HostedEngineConfig):
        return engine.runs.kind if engine.kind == "served" and engine.runs else engine.kind
    if engine.kind == "azure":
        return "azure.ai.openai"
    known = provider_at(engine.base_url)
    return _PROVIDERS.get(known, known)
