"""What the pods of a Ray cluster have on Kubernetes: size, environment, drain; see `rayservice.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.templates import Object
from r2_serve.ops.local.cluster import ENVIRONMENT

LOCAL_ONLY = re.compile(
    "RAY_AUTH_TOKEN|RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER|RAY_worker_maximum_startup_concurrency"
    "|RAY_SERVE_(ENABLE_HA_PROXY|HAPROXY_.*|DIRECT_INGRESS_.*)"
)
"""Variables of a local cluster that fit one machine only: the token of one run; the switch that keeps Ray's
ports on loopback, where no other node reaches them; the number of workers that start at once, as a node of a
cluster has cores enough; HAProxy, not yet tried on several nodes (docs/operations.md)."""
CLUSTER_ENVIRONMENT = {
    **{name: value for name, value in ENVIRONMENT.items() if not LOCAL_ONLY.fullmatch(name)},
    # Throughput mode turns this on, and then Serve starts a proxy on the head alone, `EveryNode` or not.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}
"""The environment of every Ray process of a cluster. A test holds the commands of cluster.yaml to it."""
FLUSH_S = 30
"""Seconds from the end of the last reply to the end of the container: log buffers, and Ray's shutdown."""
GPU = "nvidia.com/gpu"
DRAIN = (
    "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod ends' "
    "--deadline-remaining-seconds {seconds}"
    " && while pgrep -f '[r]ay::ServeReplica' > /dev/null; do sleep 1; done"
)
"""Command that runs before a pod ends: Serve starts its replicas on other nodes and lets those here finish.
Without it a Ray node ends at once. Ray's help hides the command; Ray's autoscaler drains nodes the same
way."""
SHM_SHARE = 0.3
"""Share of memory for Ray's object store: Ray's own default."""
SIZE = re.compile(r"(?P<cpus>\d+(\.\d+)?)cpu,(?P<memory>\d+)gi(,(?P<gpus>\d+)(?P<kind>gpu|mig-\d+g\.\d+gb))?")
"""The MIG profiles are those that KubeRay counts as a GPU of Ray (`IsGPUResourceKey` of its operator)."""


@dataclass(frozen=True)
class Node:
    """The size of a pod, which is a Ray node."""

    cpus: float
    memory_gib: int
    gpus: int = 0
    gpu_kind: str = GPU
    """Kubernetes' name of the device: whole GPUs, or a MIG profile such as nvidia.com/mig-1g.10gb."""

    @classmethod
    def parse(cls, option: str, text: str) -> Node:
        """The size that the command-line `option` gives. Raises: ConfigError."""
        found = SIZE.fullmatch(text.lower())
        if found is None:
            raise ConfigError(
                f"{option}: got {text!r}, expected such as 8cpu,16gi or 4cpu,16gi,1gpu or "
                "4cpu,16gi,1mig-1g.10gb"
            )
        gpus, kind = int(found["gpus"] or 0), found["kind"] or "gpu"
        if kind != "gpu" and gpus != 1:
            raise ConfigError(
                f"{option}: got {gpus} MIG devices in a pod, where a process sees only one: write 1{kind}, "
                "and as many pods as you need"
            )
        return cls(float(found["cpus"]), int(found["memory"]), gpus, f"nvidia.com/{kind}")

    @property
    def room(self) -> dict[str, float]:
        """What Ray counts on such a node."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * 2**30}

    @property
    def pod_values(self) -> Object:
        """What fills the gaps of the pod's template that depend on its size."""
        amounts = {"cpu": f"{self.cpus:g}", "memory": f"{self.memory_gib}Gi"}
        return {
            "amounts": amounts | ({self.gpu_kind: str(self.gpus)} if self.gpus else {}),
            "shm": f"{max(1, round(self.memory_gib * SHM_SHARE))}Gi",
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
            if self.gpus
            else None,
        }


@dataclass(frozen=True)
class GpuGroup:
    """GPU pods of one size: a worker group of KubeRay."""

    name: str
    node: Node
    bounds: tuple[int, int] | None = None
    """Fewest and most pods; None: what the replicas need."""
