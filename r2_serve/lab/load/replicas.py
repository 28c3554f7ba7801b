"""How many replicas each deployment has: from a cluster's dashboard, or from the cluster of this very process.

Both give Serve's `ServeInstanceDetails`. A replica is starting from when the controller asks for it, so also while it waits
for a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import PublishError
from r2_serve.lab.load.records import ReplicaCount

_STARTING, _STOPPING, _STOPPED = "STARTING", "STOPPING", "STOPPED"


class ReplicaSource(Protocol):
    """Where replicas are counted. Blocking: call it off the event loop."""

    def read(self) -> dict[str, ReplicaCount]:
        """By APPLICATION/DEPLOYMENT. Raises: PublishError."""
        ...


class DashboardReplicas:
    """Of a cluster, by Serve's REST interface."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def read(self) -> dict[str, ReplicaCount]:
        return replica_counts(self._dashboard.applications())


class LocalReplicas:
    """Of the cluster that this process started, which has no dashboard."""

    def read(self) -> dict[str, ReplicaCount]:
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client

        try:
            details: Mapping[str, Any] = _get_global_client().get_serve_details()
        except RayError as e:
            raise PublishError(f"Serve's controller does not answer: {e}") from e
        return replica_counts(details["applications"])


def replica_counts(applications: Mapping[str, Any]) -> dict[str, ReplicaCount]:
    """Raises: PublishError where `applications` is not what Serve tells."""
    try:
        return {
            f"{app}/{name}": _count(deployment)
            for app, details in sorted(applications.items())
            for name, deployment in sorted(details["deployments"].items())
        }
    except (KeyError, TypeError, ValueError) as e:
        raise PublishError(f"Serve's answer is not as expected: {type(e).__name__}: {e}") from e


def _count(deployment: Mapping[str, Any]) -> ReplicaCount:
    states = Counter(
        str(getattr(replica["state"], "value", replica["state"])) for replica in deployment["replicas"]
    )
    return ReplicaCount(
        running=sum(
            count for state, count in states.items() if state not in (_STARTING, _STOPPING, _STOPPED)
        ),
        starting=states[_STARTING],
        stopping=states[_STOPPING],
        target=deployment["target_num_replicas"],
        gpus=float((deployment.get("required_resources") or {}).get("GPU", 0.0)),
    )
