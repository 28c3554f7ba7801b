"""The replicas of each deployment and the nodes that hold them: from a cluster's dashboard, or from the
cluster of this process.

Both give Serve's `ServeInstanceDetails` and Ray's nodes. A replica counts as starting from the controller's
request for it, so also while it waits for a node. Serve's details name the resources of a replica's actor
alone, so the bundles of placement groups are read from the config that was deployed. They name its node only
once its process runs, so a replica that waits for a node cannot be told from one that has its GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ConfigError, ServeApiError
from r2_serve.lab.load.engine_metrics import read_engines
from r2_serve.lab.load.records import ClusterCounts, ReplicaCount
from r2_serve.ops.local.controller_log import ControllerLog
from r2_serve.scaling.cold_starts import ColdStart, read_starts
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import gpu_bundles

_STARTING, _STOPPING, _STOPPED = "STARTING", "STOPPING", "STOPPED"
ReadReplicas = Callable[[], ClusterCounts]
"""Counts replicas and nodes. It blocks: call it off the event loop.

Raises: ServeApiError if they cannot be counted; PolicyFailed if an autoscaling policy fails, as counts mean
nothing then.
"""


def dashboard_replicas(dashboard: Dashboard) -> ReadReplicas:
    """Counts the replicas of a cluster by Serve's REST interface, and its nodes by Ray's."""
    return lambda: cluster_counts(dashboard.applications(), dashboard.gpu_nodes())


def local_replicas(config: ServeConfig) -> ReadReplicas:
    """Counts the replicas of the cluster of `config` that this process started, which has no dashboard."""
    log = ControllerLog.of_this_cluster()
    deployed = {app["name"]: {"deployed_app_config": app} for app in config.raw["applications"]}

    def read() -> ClusterCounts:
        import ray
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client

        log.check()
        try:
            details: Mapping[str, Any] = _get_global_client().get_serve_details()
            alive = [node for node in ray.nodes() if node["Alive"]]
        except RayError as e:
            raise ServeApiError(f"Serve's controller does not answer: {e}") from e
        found = {name: {**app, **deployed.get(name, {})} for name, app in details["applications"].items()}
        counts = cluster_counts(found, [node["NodeID"] for node in alive if node["Resources"].get("GPU")])
        pages = (f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive)
        return counts.model_copy(update={"engines": read_engines(pages)})

    return read


def local_starts() -> list[ColdStart]:
    """The cold starts of the models in the cluster that this process started, by the logs of its replicas."""
    from ray._private.worker import global_worker

    try:
        return read_starts(Path(global_worker.node.get_session_dir_path()) / "logs" / "serve")
    except ConfigError:
        return []


def cluster_counts(applications: Mapping[str, Any], gpu_nodes: Iterable[str]) -> ClusterCounts:
    """Counts what runs, and what it holds on the nodes with GPUs, of which `gpu_nodes` are the ids.

    The GPUs of a placement group count on the node of its replica. Raises: ServeApiError if `applications` is
    not Serve's.
    """
    deployments: dict[str, ReplicaCount] = {}
    nodes = dict.fromkeys(gpu_nodes, 0.0)
    try:
        for app, details in sorted(applications.items()):
            declared = (details.get("deployed_app_config") or {}).get("deployments") or ()
            options = {entry["name"]: entry for entry in declared}
            for name, deployment in sorted(details["deployments"].items()):
                count = _count(deployment, options.get(name, {}))
                deployments[f"{app}/{name}"] = count
                for replica in deployment["replicas"]:
                    if replica.get("node_id") in nodes and _state(replica) != _STOPPED:
                        nodes[replica["node_id"]] += count.gpus
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ServeApiError(f"Serve's answer is not as expected: {type(e).__name__}: {e}") from e
    return ClusterCounts(deployments=deployments, nodes=nodes)


def _count(deployment: Mapping[str, Any], options: Mapping[str, Any]) -> ReplicaCount:
    replicas = deployment["replicas"]
    states = Counter(map(_state, replicas))
    bundles = gpu_bundles(options) if options.get("placement_group_bundles") else ()
    return ReplicaCount(
        running=states.total() - states[_STARTING] - states[_STOPPING] - states[_STOPPED],
        starting=states[_STARTING],
        stopping=states[_STOPPING],
        target=deployment["target_num_replicas"],
        gpus=sum(bundles) or float((deployment.get("required_resources") or {}).get("GPU", 0.0)),
    )


def _state(replica: Mapping[str, Any]) -> str:
    return str(getattr(replica["state"], "value", replica["state"]))
