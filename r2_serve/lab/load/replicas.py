"""The number of replicas of each deployment: from a cluster's dashboard, or from the cluster of this process.

Both give Serve's `ServeInstanceDetails`. A replica counts as starting from the controller's request for it,
so also while it waits for a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ServeApiError
from r2_serve.lab.load.records import ReplicaCount
from r2_serve.ops.local.controller_log import ControllerLog

_STARTING, _STOPPING, _STOPPED = "STARTING", "STOPPING", "STOPPED"
ReadReplicas = Callable[[], dict[str, ReplicaCount]]
"""Counts replicas by APPLICATION/DEPLOYMENT. It blocks: call it off the event loop.

Raises: ServeApiError if they cannot be counted; PolicyFailed if an autoscaling policy fails, as counts mean
nothing then.
"""


def dashboard_replicas(dashboard: Dashboard) -> ReadReplicas:
    """Counts the replicas of a cluster by Serve's REST interface."""
    return lambda: replica_counts(dashboard.applications())


def local_replicas() -> ReadReplicas:
    """Counts the replicas of the cluster that this process started, which has no dashboard."""
    log = ControllerLog.of_this_cluster()

    def read() -> dict[str, ReplicaCount]:
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client

        log.check()
        try:
            details: Mapping[str, Any] = _get_global_client().get_serve_details()
        except RayError as e:
            raise ServeApiError(f"Serve's controller does not answer: {e}") from e
        return replica_counts(details["applications"])

    return read


def replica_counts(applications: Mapping[str, Any]) -> dict[str, ReplicaCount]:
    """Counts by APPLICATION/DEPLOYMENT. Raises: ServeApiError if `applications` is not Serve's."""
    try:
        return {
            f"{app}/{name}": _count(deployment)
            for app, details in sorted(applications.items())
            for name, deployment in sorted(details["deployments"].items())
        }
    except (KeyError, TypeError, ValueError) as e:
        raise ServeApiError(f"Serve's answer is not as expected: {type(e).__name__}: {e}") from e


def _count(deployment: Mapping[str, Any]) -> ReplicaCount:
    states = Counter(str(getattr(r["state"], "value", r["state"])) for r in deployment["replicas"])
    return ReplicaCount(
        running=states.total() - states[_STARTING] - states[_STOPPING] - states[_STOPPED],
        starting=states[_STARTING],
        stopping=states[_STOPPING],
        target=deployment["target_num_replicas"],
        gpus=float((deployment.get("required_resources") or {}).get("GPU", 0.0)),
    )
