"""The numbers that the autoscaler sees, and when: a handle notes its calls at intervals and reports its notes
at others.

A decision therefore rests on a mean over the look-back period that may be one report old. That delay is half
of what matters in reactive scaling, so it is modelled as it is. Ray Serve's own code computes the mean, as
its controller calls it (`ray.serve._private.autoscaling_metrics_merge`), on simulated time.
Source: Ray Serve 2.60, `_private/router.py` (`RouterMetricsManager`) and `_private/autoscaling_state.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from r2_serve.lab.simulate.calls import Replica
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from ray.serve.config import AutoscalingConfig

    Floats = NDArray[np.float64]

RECORD_FACTOR = 0.2
"""Notes per look-back period (RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR)."""
SHORTEST_WINDOW_S = 1e-3


@dataclass(frozen=True)
class Note:
    """Calls of a deployment at one moment."""

    at_s: float
    num_queued: int
    num_ongoing: dict[Replica, int]


@dataclass(frozen=True)
class _Series:
    """A report as the controller reads it: the total as a step function."""

    times: Floats
    totals: Floats
    window_start_s: float | None


class HandleReports:
    """The handles of one deployment, taken as one, and the controller's memory of their last report."""

    def __init__(
        self, clock: Clock, deployment: Deployment, *, look_back_s: float, push_s: float, aggregation: str
    ) -> None:
        self._clock, self._deployment = clock, deployment
        self._look_back_s, self._push_s, self._aggregation = look_back_s, push_s, aggregation
        self._notes: deque[Note] = deque()
        self.last_report: list[Note] = []
        self._merged: _Series | None = None
        self._merged_for: tuple[int, int] | None = None
        self.num_reports = 0
        deployment.first_call, deployment.found_no_replica = self._start, self.report

    @classmethod
    def of(cls, clock: Clock, deployment: Deployment, config: AutoscalingConfig) -> Self:
        """Handles with the intervals of `config`."""
        look_back_s, push_s = config.look_back_period_s, config.metrics_interval_s
        aggregation = str(config.aggregation_function.value)
        return cls(clock, deployment, look_back_s=look_back_s, push_s=push_s, aggregation=aggregation)

    def _start(self) -> None:
        """Begins with the first call, as handles are made then."""
        self._clock.every(min(self._look_back_s * RECORD_FACTOR, self._push_s), self._note, first_s=0.0)
        self._clock.every(self._push_s, self.report, first_s=0.0)

    def report(self) -> None:
        """Sends the notes: at intervals, and at once if a call finds no replica."""
        oldest_s = self._clock.now - self._look_back_s
        self.last_report = [note for note in self._notes if note.at_s > oldest_s] or [self._noted()]
        self.num_reports += 1

    def total_requests(self) -> float:
        """Ongoing and queued requests, as Serve's controller computes them from the last report."""
        version = (self.num_reports, self._deployment.running_version)
        if version != self._merged_for:
            self._merged_for, self._merged = version, self._merge()
        return self._mean(self._merged)

    def queued_requests(self) -> float:
        """Queued requests of the last report. There is one source, so nothing is merged."""
        import numpy as np

        if not self.last_report:
            return 0.0
        times = np.array([note.at_s for note in self.last_report])
        return self._mean(
            _Series(times, np.array([float(note.num_queued) for note in self.last_report]), None)
        )

    def _mean(self, series: _Series | None) -> float:
        from ray.serve._private.autoscaling_metrics_merge import aggregate_arrays

        if series is None or not series.times.size:
            return 0.0
        window_s = max(self._clock.now - float(series.times[-1]), SHORTEST_WINDOW_S)
        mean = aggregate_arrays(
            series.times, series.totals, self._aggregation, series.window_start_s, window_s
        )
        return float(mean)

    def _note(self) -> None:
        self._notes.append(self._noted())
        while self._notes[0].at_s <= self._clock.now - self._look_back_s:
            self._notes.popleft()

    def _noted(self) -> Note:
        ongoing = {replica: replica.num_ongoing for replica in self._deployment.running}
        return Note(self._clock.now, self._deployment.num_queued, ongoing)

    def _merge(self) -> _Series | None:
        """Adds up the queue and each replica's calls; replicas that no longer run are left out."""
        import numpy as np
        from ray.serve._private.autoscaling_metrics_merge import merge_instantaneous_total_arrays

        notes = self.last_report
        if not notes:
            return None
        sources = [[(note.at_s, float(note.num_queued)) for note in notes]]
        for replica in self._deployment.running:
            known = [note for note in notes if replica in note.num_ongoing]
            sources += [[(note.at_s, float(note.num_ongoing[replica])) for note in known]] * bool(known)
        points = [point for source in sources for point in source]
        offsets = np.cumsum([0, *map(len, sources)])
        times, values = (np.array(column) for column in zip(*points, strict=True))
        merged_times, totals = merge_instantaneous_total_arrays(times, values, offsets)
        return _Series(
            merged_times, totals, _window_start_s([source[0][0] for source in sources], merged_times)
        )


def _window_start_s(starts: list[float], times: Floats) -> float | None:
    """Time from which every source has a note, as in Serve's `_merge_and_aggregate_timeseries`."""
    if len(starts) < 2 or not times.size:
        return None
    aligned_s = max(starts)
    return max(aligned_s, float(times[0])) if aligned_s <= times[-1] else None
