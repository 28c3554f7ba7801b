"""The KubeRay manifest agrees with the Serve config that it is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.needs import num_nodes, replicas_of
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT, Node
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from tests.serve_config.test_serve_config import CLUSTER, REFERENCE, uncommented
from tests.support.config_of import config_of

OPEN = REFERENCE.read_text()


def with_server(**fields: str | int) -> str:
    """The reference config with these fields of `server`."""
    return edited("    max_replicas: 4\n", f"    max_replicas: 4\n    server: {json.dumps(fields)}\n")


def edited(old: str, new: str, text: str = OPEN) -> str:
    """`text` with the first `old` replaced."""
    assert old in text, f"{old!r} must stand in the reference config"
    return text.replace(old, new, 1)


TEXT = with_server(keys_file="/etc/r2/keys.yaml")
PROVIDER_KEYS = ["DASHSCOPE_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY"]

KNOWN = {
    "spec": {
        "serveConfigV2",
        "rayClusterConfig",
        "upgradeStrategy",
        "excludeHeadPodFromServeSvc",
        "serveService",
        "rayClusterDeletionDelaySeconds",
    },
    "rayClusterConfig": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "autoscalerOptions": {
        "idleTimeoutSeconds",
        "upscalingMode",
        "version",
        "resources",
        "image",
        "imagePullPolicy",
        "env",
        "envFrom",
    },
    "headGroupSpec": {
        "rayStartParams",
        "template",
        "serviceType",
        "headService",
        "enableIngress",
        "resources",
        "labels",
    },
    "workerGroupSpecs": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
        "idleTimeoutSeconds",
        "numOfHosts",
        "resources",
        "labels",
    },
}
"""Keys that KubeRay knows: ray.io/v1, API reference of KubeRay 1.7."""


def manifest(text: str = TEXT, **options: Any) -> dict[str, Any]:
    """The manifest as a user's `kubectl` reads it."""
    made: dict[str, Any] = yaml.safe_load(manifest_text(config_of(text), Options(**options)))
    return made


def cluster_of(made: dict[str, Any]) -> dict[str, Any]:
    cluster: dict[str, Any] = made["spec"]["rayClusterConfig"]
    return cluster


def group(made: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (spec for spec in cluster_of(made)["workerGroupSpecs"] if spec["groupName"] == name)
    return dict(found)


def pods(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Head first."""
    for spec in (cluster_of(made)["headGroupSpec"], *cluster_of(made)["workerGroupSpecs"]):
        yield spec["template"]["spec"]


def variables(pod: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]
    }


def test_serve_config_in_the_manifest_equals_the_file_except_address_and_proxies() -> None:
    text = uncommented(TEXT, "adapters", "training", "llama")
    file, carried = config_of(text).raw, yaml.safe_load(manifest(text)["spec"]["serveConfigV2"])
    changed = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 8000}}
    assert carried == file | changed
    assert carried["applications"] == file["applications"]


def test_manifest_holds_only_keys_that_kuberay_knows() -> None:
    made = manifest(auth_secret="token", claims={"models": "/models"})
    assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", "RayService")
    cluster = cluster_of(made)
    assert made["spec"].keys() <= KNOWN["spec"] and cluster.keys() <= KNOWN["rayClusterConfig"]
    assert (
        cluster["autoscalerOptions"].keys() <= KNOWN["autoscalerOptions"]
        and cluster["headGroupSpec"].keys() <= KNOWN["headGroupSpec"]
    )
    for spec in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert spec.keys() <= KNOWN["workerGroupSpecs"]
        assert all(isinstance(value, str) for value in spec["rayStartParams"].values()), (
            "KubeRay takes texts alone there"
        )


def test_error_for_missing_client_keys_says_what_to_set() -> None:
    with pytest.raises(ConfigError) as caught:
        manifest(OPEN)
    assert (
        "anyone could spend your money" in caught.value.message
        and "keys_file: /etc/r2/keys.yaml" in caught.value.message
    )


def test_each_replica_of_a_model_gets_a_pod_with_one_gpu() -> None:
    gpu = group(manifest(), "gpu")
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (4, 8), "four models of one or two replicas"
    resources = gpu["template"]["spec"]["containers"][0]["resources"]
    assert (
        resources["limits"] == resources["requests"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    )
    shared = group(manifest(gpu_node=Node(cpus=8, memory_gib=32, gpus=2)), "gpu")
    assert (shared["minReplicas"], shared["maxReplicas"]) == (2, 4)


def test_router_decomposer_and_allocator_share_cpu_pods() -> None:
    cpu = group(manifest(), "cpu")
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (1, 1), "4 x 1 + 4 x 0.5 + 4 x 0.5 CPUs at the most"
    small = group(manifest(cpu_node=Node(cpus=2, memory_gib=8)), "cpu")
    assert (small["minReplicas"], small["maxReplicas"]) == (1, 4)
    spread = edited(
        "ray_actor_options: {num_cpus: 1,",
        "max_replicas_per_node: 1\n    ray_actor_options: {num_cpus: 1,",
        TEXT,
    )
    assert group(manifest(spread), "cpu")["maxReplicas"] == 4, "one router per node"


def test_model_at_zero_replicas_needs_no_pod_until_it_is_called() -> None:
    to_zero = "  deployments: [{name: Model, autoscaling_config: {min_replicas: 0, max_replicas: 2}}]\n"
    text = edited("0.5B-Instruct}, max_replicas: 2}\n", "0.5B-Instruct}}\n" + to_zero, TEXT)
    gpu = group(manifest(text), "gpu")
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (3, 3, 8)


def test_replica_that_fits_on_no_node_is_named() -> None:
    two = edited("0.5B-Instruct}", "0.5B-Instruct, engine_kwargs: {tensor_parallel_size: 2}}", TEXT)
    assert (
        group(manifest(two), "gpu")["template"]["spec"]["containers"][0]["resources"]["limits"][
            "nvidia.com/gpu"
        ]
        == "2"
    )
    with pytest.raises(ConfigError, match=r"m-qwen2.5-0.5b/Model takes 2 GPU, a node has 1"):
        manifest(two, gpu_node=Node(cpus=4, memory_gib=16, gpus=1))


def test_gpu_nodes_have_the_custom_resources_of_the_models() -> None:
    start = group(manifest(uncommented(TEXT, "training"), gpu_node=Node(8, 32, gpus=2)), "gpu")[
        "rayStartParams"
    ]
    assert json.loads(json.loads(start["resources"])) == {"serve_gpu": 2}


def test_routers_and_stages_run_on_cpu_nodes_alone_so_that_gpu_nodes_become_idle() -> None:
    made = manifest()
    cpu, gpu = group(made, "cpu")["rayStartParams"], group(made, "gpu")["rayStartParams"]
    assert json.loads(json.loads(cpu["resources"])) == {"router": 16} and "resources" not in gpu
    types = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    assert {name: node["resources"].get("router") for name, node in types.items()} == {
        "head": None,
        "cpu": 16,
        "gpu": None,
    }
    on_cpus = [entry for entry in replicas_of(config_of(OPEN)) if not entry.has_gpu]
    assert [entry.takes["router"] for entry in on_cpus] == [1, 1, 1]


def test_head_runs_no_work_takes_no_traffic_and_holds_no_provider_key() -> None:
    made = manifest()
    head = next(pods(made))
    assert cluster_of(made)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert made["spec"]["excludeHeadPodFromServeSvc"] is True
    assert variables(head).keys().isdisjoint([*PROVIDER_KEYS, "HF_TOKEN"])


def test_provider_keys_come_from_a_secret_by_name_and_no_value_is_in_the_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in PROVIDER_KEYS:
        monkeypatch.setenv(name, "sk-very-secret")
    made = manifest(secret="providers")
    for pod in list(pods(made))[1:]:
        for name in PROVIDER_KEYS:
            assert variables(pod)[name] == {"secretKeyRef": {"name": "providers", "key": name}}
        assert variables(pod)["HF_TOKEN"] == {
            "secretKeyRef": {"name": "providers", "key": "HF_TOKEN", "optional": True}
        }
    assert "very-secret" not in yaml.safe_dump(made)
    named = manifest(with_server(api_keys_env="R2_API_KEYS"))
    assert "R2_API_KEYS" in variables(list(pods(named))[1])


def test_every_pod_has_the_shared_environment_and_needs_rays_token() -> None:
    made = manifest()
    mode = CLUSTER_ENVIRONMENT["RAY_AUTH_MODE"]
    assert mode == "token" and cluster_of(made)["authOptions"] == {"mode": mode}
    assert cluster_of(manifest(auth_secret="mine"))["authOptions"] == {"mode": mode, "secretName": "mine"}
    for pod in pods(made):
        plain = {name: value for name, value in variables(pod).items() if isinstance(value, str)}
        assert plain | {"RAY_AUTH_MODE": mode} == CLUSTER_ENVIRONMENT


def test_pod_gets_more_time_to_end_than_its_replicas_need() -> None:
    assert {pod["terminationGracePeriodSeconds"] for pod in pods(manifest())} == {150 + 30}
    longer = edited("  - name: Router\n", "  - name: Router\n    graceful_shutdown_timeout_s: 400\n", TEXT)
    assert {pod["terminationGracePeriodSeconds"] for pod in pods(manifest(longer))} == {400 + 30}


def test_replicas_are_moved_off_a_worker_before_it_ends() -> None:
    head, *workers = pods(manifest())
    assert "lifecycle" not in head["containers"][0]
    for pod in workers:
        shell, _, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert shell == "/bin/sh" and "ray drain-node" in script
        assert f"--deadline-remaining-seconds {pod['terminationGracePeriodSeconds']}" in script


def test_client_keys_are_mounted_where_the_router_reads_them_and_every_pod_has_shared_memory() -> None:
    head, *workers = pods(manifest(keys_secret="clients"))
    for pod in workers:
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "client-keys")
        assert volume["secret"]["secretName"] == "clients" and volume["secret"]["items"] == [
            {"key": "keys.yaml", "path": "keys.yaml"}
        ]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"shm": "/dev/shm", "client-keys": "/etc/r2"}
    assert [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]] == ["/dev/shm"]
    assert all(
        pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "5Gi"} for pod in (head, *workers)
    )


def test_files_that_outlive_a_pod_need_a_volume_claim() -> None:
    text = with_server(keys_file="/etc/r2/keys.yaml", spend_file="/var/lib/r2/spend.sqlite")
    with pytest.raises(ConfigError, match=r"--claim NAME=/var/lib/r2"):
        manifest(text)
    pod = list(pods(manifest(text, claims={"books": "/var/lib/r2"})))[1]
    assert {"name": "books", "persistentVolumeClaim": {"claimName": "books"}} in pod["volumes"]


def test_manifest_has_the_pinned_version_of_ray() -> None:
    assert (
        f'"ray[default,serve]=={cluster_of(manifest())["rayVersion"]}"'
        in (REFERENCE.parent / "pyproject.toml").read_text()
    )


@pytest.mark.parametrize("at_most", [False, True])
def test_cluster_yaml_has_room_for_the_reference_config(at_most: bool) -> None:
    types = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    replicas = replicas_of(config_of(uncommented(OPEN, "training")))
    for kind in ("cpu", "gpu"):
        asked = [entry for entry in replicas if entry.has_gpu == (kind == "gpu")]
        assert 0 < num_nodes(asked, types[kind]["resources"], at_most=at_most) <= types[kind]["max_workers"]
