"""Forecasts what queries will ask of each model, from their plans, before the calls are made. No Ray.

A `Demand` watches the queries of one router process. It knows the plan and the models of each open query,
what runs now, and how long the latest calls of each model took. `forecast` says how many calls of each model
will be in progress, bucket by bucket over the next minutes, in two parts:

- planned: calls of open queries. A query without a plan counts as the mean of its model's latest plans.
- coming: calls of queries that will arrive if the rate of the last seconds continues.

Forecasts of several routers add up. Source: ours; the number of calls in progress is Little's law, rate times
duration."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from r2_serve.types import Allocation, CallRecord, Plan, Record

EDGES_S = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
"""Edges of the buckets, in seconds from now."""
NUM_BUCKETS = len(EDGES_S) - 1
RATE_WINDOW_S = 10.0
NUM_PLANS_KEPT = 8
NUM_DURATIONS_KEPT = 64
UNKNOWN_CALL_S = 1.0
"""Assumed duration of a call to a model that has answered none yet."""
LEAST_LEFT = 0.25
"""Share of its usual duration that an overdue call is assumed to need still."""


class ModelDemand(Record):
    """The demand for one model. The value of a bucket (`EDGES_S`) is a mean number of calls in progress."""

    num_active: int = 0
    """Calls meant for this model now, also waiting ones and those that another model takes in its place."""
    call_s: float = UNKNOWN_CALL_S
    """Seconds that a replica works on a call."""
    share_s: float | None = None
    """Seconds of a busy replica per call, so it does `call_s / share_s` calls at once; None if unknown."""
    planned: tuple[float, ...] = (0.0,) * NUM_BUCKETS
    coming: tuple[float, ...] = (0.0,) * NUM_BUCKETS

    def __add__(self, other: ModelDemand) -> ModelDemand:
        return ModelDemand(
            num_active=self.num_active + other.num_active,
            call_s=max(self.call_s, other.call_s),
            share_s=max((s for s in (self.share_s, other.share_s) if s is not None), default=None),
            planned=tuple(map(sum, zip(self.planned, other.planned, strict=True))),
            coming=tuple(map(sum, zip(self.coming, other.coming, strict=True))),
        )


class Demand:
    """Watches the queries of one process; `clock` is monotonic and in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int, QueryDemand] = {}
        self._num_opened = 0
        self._history: dict[str, _History] = {}
        self._call_s: dict[str, _Usual] = {}
        self._share_s: dict[str, _Usual] = {}
        self._num_active: dict[str, int] = {}
        self._num_sent: dict[str, int] = {}

    @contextmanager
    def query(self, name: str) -> Iterator[QueryDemand]:
        """Registers a query that asks for model `name` while it runs."""
        history = self._history.setdefault(name, _History())
        query = QueryDemand(self, history, opened_s=self._clock())
        number, self._num_opened = self._num_opened, self._num_opened + 1
        self._open[number] = query
        history.came(query.opened_s)
        try:
            yield query
        finally:
            del self._open[number]

    def now_s(self) -> float:
        return self._clock()

    def num_active(self, model: str) -> int:
        """Calls under way that were meant for `model`."""
        return self._num_active.get(model, 0)

    def num_sent(self, model: str) -> int:
        """Calls under way that were sent to `model` first."""
        return self._num_sent.get(model, 0)

    def forecast(self) -> dict[str, ModelDemand]:
        """The demand from now on, by model, for every model ever called or planned for."""
        now_s = self._clock()
        planned: _Profiles = {}
        for query in self._open.values():
            query.add_to(planned, now_s)
        coming: _Profiles = {}
        for history in self._history.values():
            history.add_coming(coming, now_s)
        nothing = [0.0] * NUM_BUCKETS
        return {
            model: ModelDemand(
                num_active=self.num_active(model),
                call_s=self.call_s(model),
                share_s=self._share_s[model].value() if model in self._share_s else None,
                planned=tuple(planned.get(model, nothing)),
                coming=tuple(coming.get(model, nothing)),
            )
            for model in self._call_s.keys() | planned.keys() | coming.keys() | self._num_active.keys()
        }

    def call_s(self, model: str) -> float:
        """Seconds that a replica usually works on a call of `model`."""
        usual = self._call_s.get(model)
        return usual.value() if usual is not None else UNKNOWN_CALL_S

    def learn(self, call: CallRecord) -> None:
        """Learn the duration of a settled call; failed calls say nothing about it."""
        if call.outcome != "ok":
            return
        service_s = call.work.service_s if call.work is not None else call.end_s - call.start_s
        self._call_s.setdefault(call.model, _Usual()).add(service_s)
        if call.work is not None:
            self._share_s.setdefault(call.model, _Usual()).add(call.work.share_s)

    @contextmanager
    def calling(self, model: str, sent_to: str | None = None, *, num_calls: int = 1) -> Iterator[None]:
        """Counts calls that are meant for `model` while they run; `sent_to` is the model that takes them."""
        sent_to = sent_to or model
        self._num_active[model] = self.num_active(model) + num_calls
        self._num_sent[sent_to] = self.num_sent(sent_to) + num_calls
        try:
            yield
        finally:
            self._num_active[model] -= num_calls
            self._num_sent[sent_to] -= num_calls


@dataclass(slots=True)
class QueryDemand:
    """One open query. Until its plan is known, it is expected to be like others of its name."""

    demand: Demand
    history: _History
    opened_s: float
    _plan: Plan | None = None
    _models: tuple[str, ...] = ()
    _started_s: dict[int, float] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _noted: list[_Span] | None = None
    """The query in the history of its name."""

    def plan(self, plan: Plan, allocation: Allocation) -> None:
        """Note how the query will be worked on from now on. A second plan takes the place of the first."""
        self._plan, self._models = plan, allocation.models
        self._started_s, self._ended = {}, set()
        now_s = self.demand.now_s()
        spans = [
            _Span(model, start_s - now_s, end_s - start_s) for model, start_s, end_s in self._expected(now_s)
        ]
        if self._noted is not None:
            self._noted[:] = spans
            return
        self._noted = spans
        self.history.add(now_s - self.opened_s, spans)

    @contextmanager
    def calling(self, subtask_id: int, sent_to: str) -> Iterator[None]:
        """Counts the call of a subtask while it runs."""
        self._started_s[subtask_id] = self.demand.now_s()
        try:
            with self.demand.calling(self._models[subtask_id - 1], sent_to):
                yield
        finally:
            self._ended.add(subtask_id)

    def add_to(self, profiles: _Profiles, now_s: float) -> None:
        """Add the calls that the query still needs to `profiles`."""
        if self._plan is None:
            self.history.add_one(profiles, max(0.0, self.opened_s + self.history.planning_s.value() - now_s))
            return
        for model, start_s, end_s in self._expected(now_s):
            add_call(profiles, model, start_s - now_s, end_s - now_s, 1.0)

    def _expected(self, now_s: float) -> Iterator[tuple[str, float, float]]:
        """Model, start and end of each subtask that has not ended, as its dependencies allow."""
        assert self._plan is not None
        end_of: dict[int, float] = {}
        for subtask, model in zip(self._plan.subtasks, self._models, strict=True):
            if subtask.id in self._ended:
                continue
            call_s = self.demand.call_s(model)
            started_s = self._started_s.get(subtask.id)
            if started_s is not None:
                start_s, end_s = now_s, max(started_s + call_s, now_s + LEAST_LEFT * call_s)
            else:
                start_s = max((end_of.get(needed, now_s) for needed in subtask.depends_on), default=now_s)
                end_s = start_s + call_s
            end_of[subtask.id] = end_s
            yield model, start_s, end_s


@dataclass(frozen=True, slots=True)
class _Span:
    """A call of a plan, in seconds from the plan's allocation."""

    model: str
    start_s: float
    call_s: float


class _Usual:
    """The first quartile of the latest durations, as waiting and cold starts only ever add time."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=NUM_DURATIONS_KEPT)
        self._value: float | None = None

    def add(self, duration_s: float) -> None:
        self._latest.append(duration_s)
        self._value = None

    def value(self) -> float:
        if self._value is None:
            ranked = sorted(self._latest)
            self._value = ranked[len(ranked) // 4] if ranked else 0.0
        return self._value


class _History:
    """The latest queries of one name."""

    def __init__(self) -> None:
        self.planning_s = _Usual()
        """Seconds from the arrival of a query to its allocation."""
        self._arrivals_s: deque[float] = deque()
        self._plans: deque[Sequence[_Span]] = deque(maxlen=NUM_PLANS_KEPT)

    def came(self, now_s: float) -> None:
        """Note an arrival and forget old ones, also if no forecast is ever asked for."""
        self._arrivals_s.append(now_s)
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._arrivals_s and self._arrivals_s[0] < now_s - RATE_WINDOW_S:
            self._arrivals_s.popleft()

    def add(self, planning_s: float, spans: Sequence[_Span]) -> None:
        self.planning_s.add(planning_s)
        self._plans.append(spans)

    def add_one(self, profiles: _Profiles, after_s: float) -> None:
        """Add a query like the latest ones, which is allocated in `after_s`."""
        for spans in self._plans:
            for span in spans:
                start_s = after_s + span.start_s
                add_call(profiles, span.model, start_s, start_s + span.call_s, 1.0 / len(self._plans))

    def add_coming(self, profiles: _Profiles, now_s: float) -> None:
        """Add queries that arrive at the rate of the last seconds. A call is in progress for its duration."""
        self._forget(now_s)
        per_s = len(self._arrivals_s) / RATE_WINDOW_S
        if not per_s:
            return
        planning_s = self.planning_s.value()
        for spans in self._plans:
            for span in spans:
                profile = profiles.setdefault(span.model, [0.0] * NUM_BUCKETS)
                for i in range(NUM_BUCKETS):
                    middle_s = (EDGES_S[i] + EDGES_S[i + 1]) / 2
                    since_first_s = middle_s - planning_s - span.start_s
                    profile[i] += per_s * min(max(since_first_s, 0.0), span.call_s) / len(self._plans)


_Profiles = dict[str, list[float]]


def add_call(profiles: _Profiles, model: str, start_s: float, end_s: float, weight: float) -> None:
    """Add a call that runs from `start_s` to `end_s` from now to the buckets in between."""
    profile = profiles.setdefault(model, [0.0] * NUM_BUCKETS)
    for i in range(max(0, bisect_right(EDGES_S, start_s) - 1), NUM_BUCKETS):
        if EDGES_S[i] >= end_s:
            break
        overlap_s = min(end_s, EDGES_S[i + 1]) - max(start_s, EDGES_S[i])
        profile[i] += weight * overlap_s / (EDGES_S[i + 1] - EDGES_S[i])


def total(forecasts: Sequence[Mapping[str, ModelDemand]]) -> dict[str, ModelDemand]:
    """The sum of the forecasts of several routers."""
    summed: dict[str, ModelDemand] = {}
    for forecast in forecasts:
        for model, demand in forecast.items():
            summed[model] = summed[model] + demand if model in summed else demand
    return summed
