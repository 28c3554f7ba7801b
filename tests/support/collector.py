"""A collector of OpenTelemetry on loopback: it takes real OTLP over HTTP and keeps what it got."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Collector:
    spans: list[Span] = field(default_factory=list)
    metric_names: set[str] = field(default_factory=set)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200

    @property
    def app(self) -> Starlette:
        paths = {"/v1/traces": self._traces, "/v1/metrics": self._metrics}
        return Starlette(routes=[Route(path, take, methods=["POST"]) for path, take in paths.items()])

    async def _traces(self, request: Request) -> Response:
        message = ExportTraceServiceRequest.FromString(await self._body(request))
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return Response(status_code=self.status)

    async def _metrics(self, request: Request) -> Response:
        message = ExportMetricsServiceRequest.FromString(await self._body(request))
        for resource in message.resource_metrics:
            for scope in resource.scope_metrics:
                self.metric_names |= {metric.name for metric in scope.metrics}
        return Response(status_code=self.status)

    async def _body(self, request: Request) -> bytes:
        self.headers.append(dict(request.headers))
        body = await request.body()
        return gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body

    def tree(self) -> list[str]:
        """The names of the spans as a tree, children in the order of their start; failed ones are marked."""
        by_parent: dict[bytes, list[Span]] = {}
        ids = {span.span_id for span in self.spans}
        for span in sorted(self.spans, key=lambda span: (span.start_time_unix_nano, span.name)):
            parent = span.parent_span_id if span.parent_span_id in ids else b""
            by_parent.setdefault(parent, []).append(span)

        def lines(parent: bytes, depth: int) -> list[str]:
            found = []
            for span in by_parent.get(parent, []):
                error = f" ({attributes(span)['error.type']})" if span.status.code == 2 else ""
                found += ["  " * depth + span.name + error, *lines(span.span_id, depth + 1)]
            return found

        return lines(b"", 0)


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
