"""Manifests as YAML text that people read: texts in several lines stay so, and a head says what to do before applying."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from r2_serve.ops.deploy_files.rayservice import Options


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with literal blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def documents(objects: Iterable[Mapping[str, Any]]) -> str:
    """One YAML document per object."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=140)


def manifest_text(manifest: Mapping[str, Any], options: Options) -> str:
    """The RayService, under a comment with the secrets and claims that must be there first."""
    container = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][
        0
    ]
    needed = [v["valueFrom"]["secretKeyRef"]["key"] for v in container["env"] if "valueFrom" in v]
    lines = [
        "Made by `r2-serve kuberay` from a Serve config: change that and make this anew. KubeRay 1.6 or later. Before `kubectl apply`:",
        f"  image {options.image}, built from Dockerfile and pushed",
        f"  Secret {options.secret} with {', '.join(needed)}",
    ]
    if any(mount["name"] == "client-keys" for mount in container["volumeMounts"]):
        lines.append(f"  Secret {options.keys_secret} with keys.yaml (`r2-serve keys new`)")
    lines += [
        f"  PersistentVolumeClaim {name}, ReadWriteMany, for {directory}"
        for name, directory in options.claims.items()
    ]
    lines.append(
        f"Clients inside the cluster: http://{options.name}-serve-svc.{options.namespace}.svc:{container['ports'][0]['containerPort']}/v1"
    )
    return "".join(f"# {line}\n" for line in lines) + documents([manifest])
