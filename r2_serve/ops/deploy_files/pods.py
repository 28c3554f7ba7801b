"""Pod templates of a Ray cluster on Kubernetes: one container, `/dev/shm` for Ray's object store, secrets by name.

KubeRay adds the start command, liveness and readiness (of a worker: Serve's proxy on it), and the token's variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from r2_serve.ops.deploy_files.environment import CLUSTER_ENVIRONMENT

METRICS_PORT = 8080
"""Where each Ray node shows its metrics on Kubernetes: KubeRay's own setting."""
APP_LABEL = "app.kubernetes.io/instance"
USER_ID = 1000
"""Of the user in our image (Dockerfile) and in Ray's own."""
FLUSH_S = 30
"""From the last reply's end to the container's: log buffers, and Ray's own way out."""
GPU = "nvidia.com/gpu"
DRAIN = (
    "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod ends' --deadline-remaining-seconds {seconds}"
    " && while pgrep -f '[r]ay::ServeReplica' > /dev/null; do sleep 1; done"
)
"""Before a pod is told to end: Serve starts its replicas elsewhere and lets those here finish. A Ray node that is told to end without it
ends at once. The command is hidden in Ray's help; the autoscaler's way is the same."""
SHM_SHARE = 0.3
"""Ray's own default share of memory for its object store."""


@dataclass(frozen=True)
class Node:
    """The size of a pod, which is a Ray node."""

    cpus: float
    memory_gib: int
    gpus: int = 0


@dataclass(frozen=True)
class Volumes:
    """What the pods see of the world."""

    claims: Mapping[str, str]
    """Directory by name of an existing PersistentVolumeClaim; all pods share it (ReadWriteMany)."""
    keys_file: str | None = None
    keys_secret: str = ""


@dataclass(frozen=True)
class Secrets:
    """Variables that hold secrets, and the Kubernetes Secret that has them under their own names."""

    name: str
    variables: Sequence[str]
    optional: Sequence[str] = ("HF_TOKEN",)


def pod_template(
    name: str,
    instance: str,
    image: str,
    node: Node,
    *,
    ports: Mapping[str, int],
    volumes: Volumes,
    secrets: Secrets | None,
    shutdown_s: float,
    node_selector: Mapping[str, str],
) -> dict[str, Any]:
    """`secrets` None: a pod in which no replica runs, and which needs none."""
    mounts, declared = _volumes(node, volumes)
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "env": [*_plain_variables(), *(_secret_variables(secrets) if secrets else ())],
        "resources": _resources(node),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    if secrets is not None:
        drain = DRAIN.format(seconds=int(shutdown_s) + FLUSH_S)
        container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", drain]}}}
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": int(shutdown_s) + FLUSH_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": declared,
    }
    if node_selector:
        spec["nodeSelector"] = dict(node_selector)
    if node.gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": {APP_LABEL: instance}}, "spec": spec}


def _plain_variables() -> list[dict[str, Any]]:
    """Without the mode of authentication, which the operator sets together with the token."""
    return [
        {"name": name, "value": value}
        for name, value in CLUSTER_ENVIRONMENT.items()
        if name != "RAY_AUTH_MODE"
    ]


def _secret_variables(secrets: Secrets) -> list[dict[str, Any]]:
    """A pod does not start while the Secret lacks one that is not optional; `kubectl describe` says which."""

    def variable(name: str, **more: bool) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": secrets.name, "key": name, **more}}}

    return [
        *(variable(name) for name in secrets.variables),
        *(variable(name, optional=True) for name in secrets.optional),
    ]


def _resources(node: Node) -> dict[str, Any]:
    """Requests equal limits: Ray takes its CPUs and memory from the limits, and must get what it counts on."""
    amounts = {"cpu": f"{node.cpus:g}", "memory": f"{node.memory_gib}Gi"} | (
        {GPU: str(node.gpus)} if node.gpus else {}
    )
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _volumes(node: Node, volumes: Volumes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mounts of the container, and the pod's volumes."""
    shm = {
        "name": "shm",
        "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, round(node.memory_gib * SHM_SHARE))}Gi"},
    }
    mounts, declared = [{"name": "shm", "mountPath": "/dev/shm"}], [shm]  # noqa: S108  # nosec B108
    if volumes.keys_file:
        folder = PurePosixPath(volumes.keys_file)
        item = {"key": "keys.yaml", "path": folder.name}
        declared.append(
            {
                "name": "client-keys",
                "secret": {"secretName": volumes.keys_secret, "defaultMode": 0o440, "items": [item]},
            }
        )
        mounts.append({"name": "client-keys", "mountPath": str(folder.parent), "readOnly": True})  # type: ignore[dict-item]
    for claim, directory in volumes.claims.items():
        declared.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": claim, "mountPath": directory})
    return mounts, declared
