"""What the autoscaler gets to know, and when: a handle notes its calls at intervals, and reports its notes at others.

So a decision rests on a mean over the look-back period that is up to one report old; that delay is half of what there is
to say of reactive scaling, and it is modelled as it is. The arithmetic of the mean is Ray Serve's own, called as its
controller calls it (`ray.serve._private.autoscaling_metrics_merge`), with the virtual time.
Source: Ray Serve 2.60, `_private/router.py` (`RouterMetricsManager`) and `_private/autoscaling_state.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from r2_serve.lab.simulate.replicas import Replica

RECORD_FACTOR = 0.2
"""Notes per look-back period: RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR."""


@dataclass(frozen=True)
class Note:
    """Calls of a deployment at one moment."""

    at_s: float
    num_queued: int
    num_ongoing: dict[Replica, int]


@dataclass(frozen=True)
class _Merged:
    """A report as the controller reads it: the total as a step function."""

    times: Any
    totals: Any
    window_start_s: float | None


class HandleReports:
    """The handles of one deployment, taken for one, and the controller's memory of their last report."""

    def __init__(
        self, clock: Clock, deployment: Deployment, *, look_back_s: float, push_s: float, aggregation: str
    ) -> None:
        self._clock, self._deployment = clock, deployment
        self._look_back_s, self._push_s, self._aggregation = look_back_s, push_s, aggregation
        self._notes: deque[Note] = deque()
        self._reported: list[Note] = []
        self._merged: _Merged | None = None
        self._merged_for: tuple[int, int] | None = None
        self.num_reports = 0
        deployment.first_call, deployment.came_to_nobody = self._start, self.report

    def _start(self) -> None:
        """With the first call, as handles are made then."""
        self._clock.every(min(self._look_back_s * RECORD_FACTOR, self._push_s), self._note, first_s=0.0)
        self._clock.every(self._push_s, self.report, first_s=0.0)

    def report(self) -> None:
        """Sends the notes. Also at once, when a call finds no replica."""
        oldest_s = self._clock.now - self._look_back_s
        self._reported = [note for note in self._notes if note.at_s > oldest_s] or [self._noted()]
        self.num_reports += 1

    def notes_of_last_report(self) -> list[Note]:
        return self._reported

    def total_requests(self) -> float:
        """Ongoing and queued, as Serve's controller makes it of the last report."""
        from ray.serve._private.autoscaling_metrics_merge import aggregate_arrays

        merged = self._read()
        if merged is None or not merged.times.size:
            return 0.0
        last_window_s = max(self._clock.now - float(merged.times[-1]), 1e-3)
        return float(
            aggregate_arrays(
                merged.times, merged.totals, self._aggregation, merged.window_start_s, last_window_s
            )
        )

    def queued_requests(self) -> float:
        """Of the last report, likewise; of one source, so without merging."""
        import numpy as np
        from ray.serve._private.autoscaling_metrics_merge import aggregate_arrays

        if not self._reported:
            return 0.0
        times = np.array([note.at_s for note in self._reported])
        values = np.array([float(note.num_queued) for note in self._reported])
        return float(
            aggregate_arrays(
                times, values, self._aggregation, None, max(self._clock.now - self._reported[-1].at_s, 1e-3)
            )
        )

    def _note(self) -> None:
        self._notes.append(self._noted())
        while self._notes[0].at_s <= self._clock.now - self._look_back_s:
            self._notes.popleft()

    def _noted(self) -> Note:
        deployment = self._deployment
        return Note(
            self._clock.now,
            deployment.num_queued,
            {replica: replica.num_ongoing for replica in deployment.running},
        )

    def _read(self) -> _Merged | None:
        """The last report merged, again only when there is a new one or other replicas run."""
        version = (self.num_reports, self._deployment.running_version)
        if version != self._merged_for:
            self._merged_for, self._merged = version, self._merge()
        return self._merged

    def _merge(self) -> _Merged | None:
        """Each replica's calls are a source, the queue another; those of replicas that no longer run are left out."""
        import numpy as np
        from ray.serve._private.autoscaling_metrics_merge import merge_instantaneous_total_arrays

        notes = self._reported
        if not notes:
            return None
        times, values, offsets = (
            [note.at_s for note in notes],
            [float(note.num_queued) for note in notes],
            [0, len(notes)],
        )
        starts = [notes[0].at_s]
        for replica in self._deployment.running:
            known = [note for note in notes if replica in note.num_ongoing]
            if known:
                times += [note.at_s for note in known]
                values += [float(note.num_ongoing[replica]) for note in known]
                offsets.append(len(times))
                starts.append(known[0].at_s)
        merged_times, totals = merge_instantaneous_total_arrays(
            np.array(times), np.array(values), np.array(offsets)
        )
        return _Merged(merged_times, totals, _window_start_s(starts, merged_times))


def _window_start_s(starts: list[float], times: Any) -> float | None:
    """Since when every source has something to say, as in `DeploymentAutoscalingState._merge_and_aggregate_timeseries`."""
    if len(starts) < 2 or not times.size:
        return None
    aligned_s = max(starts)
    return max(aligned_s, float(times[0])) if aligned_s <= times[-1] else None
