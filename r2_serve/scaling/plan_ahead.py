"""The number of replicas that a forecast needs.

Pure arithmetic, shared by the Serve policy and the simulator.

A replica asked for now serves after `lead_s`. So there are two questions, and the larger answer wins:

- grow: how much work will be left when a new replica could serve? The work until then goes to the replicas
  that are there (a fluid queue); the rest, the backlog, should be gone within `drain_s`. A burst that the
  present replicas finish before a new one could help starts none.
- keep: how many of the present replicas will be needed within `lead_s`? A replica stopped sooner would be
  missed, as another one takes `lead_s`; one needed later can be started again in time.

Source: ours. The fluid queue is the usual one (Newell, Applications of Queueing Theory, 1971).
"""

from __future__ import annotations

from dataclasses import dataclass

from r2_serve.router.demand import EDGES_S, NUM_BUCKETS, ModelDemand


@dataclass(frozen=True)
class Fleet:
    """A model's replicas."""

    num_running: int
    calls_each: float
    """Calls in progress that a replica handles well: `target_ongoing_requests`."""
    ready_in_s: tuple[float, ...] = ()
    """Seconds until each starting replica serves."""

    @property
    def num_wanted(self) -> int:
        return self.num_running + len(self.ready_in_s)

    def replica_s(self, start_s: float, end_s: float) -> float:
        """Replica-seconds in the time from `start_s` to `end_s` after now."""
        starting_s = sum(max(0.0, end_s - max(start_s, ready_s)) for ready_s in self.ready_in_s)
        return self.num_running * (end_s - start_s) + starting_s


def replicas_needed(
    demand: ModelDemand, fleet: Fleet, *, lead_s: float, drain_s: float, trend: float = 1.0
) -> float:
    """Replicas to have from now on, as a fraction that the caller rounds up.

    `lead_s` is the time from asking for a replica to its first call, `drain_s` the time in which a backlog
    should go. `trend` in [0, 1] says how far the recent rate of queries is expected to continue.
    """
    load = [planned + trend * coming for planned, coming in zip(demand.planned, demand.coming, strict=True)]
    load[0] = max(load[0], demand.num_active)
    ahead = [i for i in range(NUM_BUCKETS) if EDGES_S[i] < lead_s] or [0]
    keep = min(max(load[i] for i in ahead), fleet.num_wanted * fleet.calls_each)
    then = load[min(ahead[-1] + 1, NUM_BUCKETS - 1)]
    backlog_s = _backlog_s(load, demand, fleet, lead_s)
    grow = then + backlog_s / max(drain_s, demand.call_s)
    return max(keep, grow) / fleet.calls_each


def _backlog_s(load: list[float], demand: ModelDemand, fleet: Fleet, lead_s: float) -> float:
    """Seconds of calls left at `lead_s`: waiting now or coming by then, less the fleet's work meanwhile."""
    busy_each = max(fleet.calls_each, demand.call_s / demand.share_s if demand.share_s else 0.0)
    num_at_work = fleet.num_running * busy_each
    left_s = max(0.0, demand.num_active - num_at_work) * demand.call_s
    for start_s, edge_s, calls in zip(EDGES_S, EDGES_S[1:], load, strict=False):
        end_s = min(edge_s, lead_s)
        if end_s <= start_s:
            break
        left_s = max(0.0, left_s + calls * (end_s - start_s) - busy_each * fleet.replica_s(start_s, end_s))
    return left_s
