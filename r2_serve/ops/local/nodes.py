"""Several Ray nodes on this machine, with GPUs that are only counted: what a cluster does, without one.

Ray's own simulation of nodes (`ray.cluster_utils.Cluster`, static): each is a raylet of its own with its own workers, and can
be killed. The other one, the `fake_multinode` autoscaler provider, does not start from Ray's wheels in 2.60.
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
"""For routers, decomposers and allocators; counted, not had."""


@contextlib.contextmanager
def local_nodes(count: int, *, gpus_each: int) -> Iterator[Cluster]:
    """A head with CPUs alone and `count` nodes with `gpus_each` GPUs alone, so that no router is on a node that may be killed.

    All end with the context. `cluster.address` is for `local_cluster(address=...)`. Raises: EngineUnavailable where Ray does not start.
    """
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster()
    try:
        try:
            cluster.add_node(
                node_ip_address=LOOPBACK, num_cpus=HEAD_CPUS, num_gpus=0, include_dashboard=False
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
    """One more, as a cloud would start it. In the main thread only: Ray sets signal handlers for it."""
    cluster.add_node(node_ip_address=LOOPBACK, num_cpus=0, num_gpus=gpus)


def kill_node(cluster: Cluster, node_id: str) -> None:
    """SIGKILL to all processes of a node that is not the head. Raises: ValueError where there is no such."""
    found = [node for node in cluster.worker_nodes if node.node_id == node_id]
    if not found:
        raise ValueError(
            f"no node {node_id} but the head; there are {sorted(str(node.node_id) for node in cluster.worker_nodes)}"
        )
    cluster.remove_node(found[0], allow_graceful=False)
