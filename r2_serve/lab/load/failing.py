"""Failures of a real run on a local cluster: SIGKILL for a replica's process, or for all of a node."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from r2_serve.errors import ConfigError
from r2_serve.lab.load.replicas import ReadReplicas
from r2_serve.lab.workload.failures import Failure, NodeDies
from r2_serve.serve_config.applications import MODEL
from r2_serve.serve_config.document import suggestion

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

Kill = Callable[[Failure], None]
"""Makes a failure happen now. It blocks: call it off the event loop."""


def check_failures(failures: Sequence[Failure], apps: Iterable[str], *, has_nodes: bool) -> None:
    """Raises: ConfigError for a failure of what a local cluster does not have."""
    for failure in failures:
        if isinstance(failure, NodeDies):
            if not has_nodes:
                raise ConfigError("failures: a node dies only where there are some besides the head (nodes)")
        elif failure.app not in (known := sorted(apps)):
            raise ConfigError(f"failures: no application {failure.app!r}{suggestion(failure.app, known)}")


def local_kill(read: ReadReplicas, cluster: Cluster | None) -> Kill:
    """Kills on the cluster that this process started; `cluster` has its nodes besides the head, if any."""

    def kill(failure: Failure) -> None:
        if not isinstance(failure, NodeDies):
            _kill_replica(failure.app)
        elif cluster is not None and (nodes := read().nodes):
            from r2_serve.ops.local.nodes import kill_node

            kill_node(cluster, max(nodes, key=lambda name: nodes[name]))

    return kill


def _kill_replica(app: str) -> None:
    from ray.serve.context import _get_global_client

    deployments = _get_global_client().get_serve_details()["applications"][app]["deployments"]
    replicas = deployments[MODEL]["replicas"]
    running = sorted(
        (replica for replica in replicas if replica["state"] == "RUNNING" and replica["pid"]),
        key=lambda replica: float(replica["start_time_s"]),
    )
    if running:
        with suppress(ProcessLookupError):  # it has stopped meanwhile
            os.kill(running[0]["pid"], signal.SIGKILL)
