"""The latest queries, for those who begin to watch: their traces, and the events that the traces tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from r2_serve.types import CalledModel, CallRecord, Event, SubtaskResult, Trace
from r2_serve.types.events import shortened, shortened_plan


class PastQueries:
    """The latest finished queries of one process, with texts of a bounded length. It is a sink of traces."""

    def __init__(self, most: int) -> None:
        self._traces = deque[Trace](maxlen=most)

    def __call__(self, trace: Trace) -> None:
        """Remembers a query; shadows of a trial are no queries of clients."""
        if self._traces.maxlen and (trace.rollout is None or trace.rollout.arm != "shadow"):
            self._traces.append(_bounded(trace))

    def traces(self) -> list[Trace]:
        """The oldest first."""
        return list(self._traces)


def events_of(trace: Trace, *, is_over: bool = True) -> list[Event]:
    """The events of a query in their order, as far as its trace tells them."""
    known = {"request_id": trace.request_id, "model": trace.model, "client": trace.client}
    told = [*_beginning(trace), *_middle(trace), *(_end(trace) if is_over else ())]
    events = [Event.model_validate({**known, **fields}) for fields in told]
    return sorted(events, key=lambda event: event.at_s)


Fields = dict[str, object]


def _beginning(trace: Trace) -> Iterator[Fields]:
    query = None if trace.query == "" else trace.query
    known = {"query": query, "began_s": trace.began_s or None, "deadline_s": trace.deadline_s}
    yield {"kind": "started", "at_s": 0.0, **known}
    if (decision := trace.decision) is not None:
        fields = {"action": decision.action, "reason": decision.reason, "direct_usd": decision.direct_usd}
        yield {"kind": "decided", "at_s": 0.0, **fields}
    yield from _calls(trace, "decompose")
    if trace.plan is not None:
        planned_s = _last_s(trace, "decompose")
        yield {"kind": "planned", "at_s": planned_s, "plan": trace.plan}
        yield from _calls(trace, "allocate")
        if trace.allocation is not None:
            at_s = max(planned_s, _last_s(trace, "allocate"))
            models = trace.allocation.models
            yield {"kind": "allocated", "at_s": at_s, "plan": trace.plan, "models": models}


def _middle(trace: Trace) -> Iterator[Fields]:
    for result in trace.results:
        yield {
            "kind": "step_started",
            "at_s": result.start_s,
            "subtask": result.id,
            "models": (result.model,),
        }
    for call in trace.calls:
        if call.stage not in ("decompose", "allocate"):
            yield _called(call)
    for result in trace.results:
        yield from _asked(result)
        fields = {"answer": result.answer, "finish_reason": result.finish_reason, "cost_usd": result.cost_usd}
        step = {"subtask": result.id, "models": (result.model,)}
        yield {"kind": "step_done", "at_s": result.end_s, **step, **fields}


def _end(trace: Trace) -> Iterator[Fields]:
    end: Fields = {"at_s": trace.duration_s, "cost_usd": trace.cost_usd}
    if trace.error is None:
        saved_usd = trace.savings and trace.savings.saved_usd
        yield {"kind": "answered", **end, "answer": trace.answer, "saved_usd": saved_usd}
    else:
        yield {"kind": "failed", **end, "error": trace.error}


def _calls(trace: Trace, stage: str) -> Iterator[Fields]:
    return (_called(call) for call in trace.calls if call.stage == stage)


def call_told(call: CallRecord) -> CalledModel:
    """What an event says of a call that has ended."""
    usage = call.usage
    fields = {name: getattr(call, name) for name in CalledModel.model_fields if hasattr(call, name)}
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return CalledModel.model_validate({**fields, **tokens})


def _called(call: CallRecord) -> Fields:
    return {"kind": "called", "at_s": call.end_s, "subtask": call.subtask, "called": call_told(call)}


def _asked(result: SubtaskResult) -> Iterator[Fields]:
    for ask in result.gate.asked if result.gate is not None else ():
        yield {"kind": "asked", "at_s": result.end_s, "subtask": result.id, "asked": ask}


def _last_s(trace: Trace, stage: str) -> float:
    return max((call.end_s for call in trace.calls if call.stage == stage), default=0.0)


def _bounded(trace: Trace) -> Trace:
    """The trace with texts of the length that the feed shows."""
    results = tuple(
        result.model_copy(update={"answer": shortened(result.answer)}) for result in trace.results
    )
    update = {
        "query": shortened(trace.query),
        "plan": trace.plan and shortened_plan(trace.plan),
        "results": results,
        "answer": trace.answer and shortened(trace.answer),
        "error": trace.error and shortened(trace.error),
    }
    return trace.model_copy(update=update)
