"""Several Ray nodes on this machine, with GPUs that are only counted: the behaviour of a cluster without one.

Ray simulates the nodes (`ray.cluster_utils.Cluster`): each is a raylet of its own with its own workers, and
can be killed. Ray's other simulation, the autoscaler provider `fake_multinode`, does not start from the
wheels of 2.60.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from r2_serve.errors import EngineUnavailable

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

LOOPBACK = "127.0.0.1"
HEAD_CPUS = 8
"""CPUs of the head for routers, decomposers and allocators; the machine may have fewer."""


@contextlib.contextmanager
def local_nodes(count: int, *, gpus_each: int) -> Iterator[Cluster]:
    """A head with CPUs and `count` nodes with `gpus_each` GPUs, so that no router is on a node that may be
    killed.

    All end with the context. `cluster.address` is for `local_cluster(address=...)`.

    Raises: EngineUnavailable if Ray does not start.
    """
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster()
    try:
        try:
            cluster.add_node(
                node_ip_address=LOOPBACK,
                num_cpus=HEAD_CPUS,
                num_gpus=0,
                resources={"router": HEAD_CPUS * 10},
                include_dashboard=False,
            )
            for _ in range(count):
                add_node(cluster, gpus_each)
        except Exception as e:
            raise EngineUnavailable(
                f"Ray did not start {count + 1} nodes: {type(e).__name__}: {e}. Is the machine overloaded?"
            ) from e
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster, gpus: int) -> None:
    """Adds a node, as a cloud would. Call it in the main thread, as Ray sets signal handlers."""
    cluster.add_node(node_ip_address=LOOPBACK, num_cpus=0, num_gpus=gpus)


def kill_node(cluster: Cluster, node_id: str) -> None:
    """Kills all processes of a node that is not the head. Raises: ValueError if there is no such node."""
    found = [node for node in cluster.worker_nodes if node.node_id == node_id]
    if not found:
        known = sorted(str(node.node_id) for node in cluster.worker_nodes)
        raise ValueError(f"no node {node_id} besides the head; there are {known}")
    cluster.remove_node(found[0], allow_graceful=False)
