"""One trace per query: a span for the query, each stage, each subtask, and each call of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from r2_serve.types import CallRecord, Trace, TraceContext, new_span_id

Attributes = dict[str, str | int | float | bool]
NS = 1_000_000_000
_OPERATION = "gen_ai.operation.name"


@dataclass(frozen=True)
class SpansOf:
    """Turns traces into spans."""

    resource: Resource
    providers: Mapping[str, str]
    """Name of the provider of each model, by the model's name."""
    redact: Callable[[str], str] = str
    """Replaces secrets in texts."""
    has_content: bool = False
    """Whether spans hold texts of the client and of models."""

    def __call__(self, trace: Trace, end_s: float) -> list[ReadableSpan]:
        """The spans of a query that ended at `end_s` (seconds since 1970), its own first; none if it is not
        recorded."""
        context = trace.context
        if context is None or context.span_id is None:
            return []
        query = _Query(self, context, context.span_id, trace, end_s - trace.duration_s)
        return list(query.spans())


@dataclass(frozen=True)
class _Query:
    make: SpansOf
    context: TraceContext
    span_id: str
    trace: Trace
    start_s: float
    """The start of the query, in seconds since 1970."""

    def spans(self) -> Iterator[ReadableSpan]:
        trace = self.trace
        yield self._span(
            f"invoke_workflow {trace.model}",
            self.span_id,
            self.context.parent_id,
            (0.0, trace.duration_s),
            self._query_attributes(),
            error=trace.error,
        )
        plan = [call for call in trace.calls if call.stage == "decompose"]
        yield from self._stage(f"plan {trace.model}", plan, self._plan_attributes())
        allocation = [call for call in trace.calls if call.stage == "allocate"]
        yield from self._stage(f"allocate {trace.model}", allocation, {"r2.stage": "allocate"})
        for subtask_id in sorted({call.subtask for call in trace.calls if call.subtask is not None}):
            calls = [call for call in trace.calls if call.subtask == subtask_id]
            yield from self._stage(f"subtask {subtask_id}", calls, self._subtask_attributes(subtask_id))
        for call in trace.calls:
            if call.stage not in ("decompose", "allocate") and call.subtask is None:
                yield self._call(call, self.span_id)

    def _stage(self, name: str, calls: list[CallRecord], attributes: Attributes) -> Iterator[ReadableSpan]:
        """The span around `calls`, then theirs; none if there are none."""
        if not calls:
            return
        span_id = new_span_id()
        times = min(call.start_s for call in calls), max(call.end_s for call in calls)
        last = max(calls, key=lambda call: call.end_s)
        error = last.error if last.outcome != "ok" else None
        yield self._span(name, span_id, self.span_id, times, attributes, error=error)
        for call in calls:
            yield self._call(call, span_id)

    def _call(self, call: CallRecord, parent_id: str) -> ReadableSpan:
        attributes: Attributes = {
            _OPERATION: "chat",
            "gen_ai.request.model": call.model,
            "gen_ai.provider.name": self.make.providers.get(call.model, "r2"),
            "gen_ai.usage.input_tokens": call.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": call.usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": call.usage.cached_read_tokens,
            "r2.stage": call.stage,
            "r2.attempt": call.attempt,
            "r2.cost_usd": float(call.cost_usd),
            "r2.usage_is_estimated": call.is_estimated,
        }
        if call.passed_over:
            attributes["r2.passed_over"] = ", ".join(call.passed_over)
        error = call.error if call.outcome != "ok" else None
        times = (call.start_s, call.end_s)
        span_id = call.span_id or new_span_id()
        kind = SpanKind.CLIENT
        return self._span(f"chat {call.model}", span_id, parent_id, times, attributes, error=error, kind=kind)

    def _span(
        self,
        name: str,
        span_id: str,
        parent_id: str | None,
        times: tuple[float, float],
        attributes: Attributes,
        *,
        error: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ReadableSpan:
        if error is not None:
            attributes = {**attributes, "error.type": error.split(":")[0]}
        redact = self.make.redact
        attributes = {key: redact(v) if isinstance(v, str) else v for key, v in attributes.items()}
        start, end = (int((self.start_s + second) * NS) for second in times)
        return ReadableSpan(
            name,
            context=self._context(span_id),
            parent=self._context(parent_id, is_remote=parent_id == self.context.parent_id)
            if parent_id
            else None,
            resource=self.make.resource,
            attributes=attributes,
            kind=kind,
            status=Status(StatusCode.ERROR, redact(error)) if error else Status(StatusCode.UNSET),
            start_time=start,
            end_time=max(start, end),
        )

    def _context(self, span_id: str, *, is_remote: bool = False) -> SpanContext:
        trace_id = int(self.context.trace_id, 16)
        return SpanContext(trace_id, int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))

    def _query_attributes(self) -> Attributes:
        trace = self.trace
        attributes: Attributes = {
            _OPERATION: "invoke_workflow",
            "gen_ai.agent.name": trace.model,
            "r2.request_id": trace.request_id,
            "r2.policy": trace.policy,
            "r2.cost_usd": float(trace.cost_usd),
            "r2.worker_cost_usd": float(trace.worker_cost_usd),
        }
        more = {
            "r2.client": trace.client or None,
            "r2.decision": trace.decision.reason if trace.decision else None,
            "r2.plan_fallback": trace.plan_fallback,
            "r2.allocation_fallback": trace.allocation_fallback,
            "r2.session": trace.session.state if trace.session else None,
        }
        content = {"gen_ai.input.messages": trace.query, "gen_ai.output.messages": trace.answer}
        more |= content if self.make.has_content else {}
        return attributes | {key: value for key, value in more.items() if value is not None}

    def _plan_attributes(self) -> Attributes:
        trace = self.trace
        return {
            _OPERATION: "plan",
            "gen_ai.agent.name": trace.model,
            "r2.stage": "decompose",
            "r2.plan_samples": trace.num_plan_samples,
            "r2.plan_samples_rejected": trace.num_plan_rejected,
            "r2.subtasks": len(trace.plan.subtasks) if trace.plan else 0,
        }

    def _subtask_attributes(self, subtask_id: int) -> Attributes:
        attributes: Attributes = {"r2.stage": "execute", "r2.subtask": subtask_id}
        subtasks = self.trace.plan.subtasks if self.trace.plan else ()
        for subtask in subtasks:
            if subtask.id == subtask_id:
                attributes["r2.depends_on"] = ", ".join(str(parent) for parent in subtask.depends_on)
                if self.make.has_content:
                    attributes["gen_ai.input.messages"] = subtask.text
        for result in self.trace.results:
            if result.id == subtask_id:
                attributes["r2.model"] = result.model
                attributes["r2.cost_usd"] = float(result.cost_usd)
                if self.make.has_content:
                    attributes["gen_ai.output.messages"] = result.answer
        return attributes
