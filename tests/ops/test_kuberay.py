"""The KubeRay manifest agrees with the Serve config that it is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app as r2_serve_command
from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.cli import _group
from r2_serve.ops.deploy_files.needs import num_nodes, replicas_of
from r2_serve.ops.deploy_files.pod_config import on_pods
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT, GpuGroup, Node
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from tests.serve_config.test_serve_config import CLUSTER, REFERENCE, uncommented
from tests.support.config_of import config_of
from tests.support.scripted_pool import scripted_config

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
    "gcsFaultToleranceOptions": {
        "redisAddress",
        "redisUsername",
        "redisPassword",
        "externalStorageNamespace",
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


def documents(text: str = TEXT, **options: Any) -> list[dict[str, Any]]:
    """All objects of the manifest, as a user's `kubectl` reads them."""
    return list(yaml.safe_load_all(manifest_text(config_of(text), Options(**options))))


def manifest(text: str = TEXT, **options: Any) -> dict[str, Any]:
    """The RayService."""
    return documents(text, **options)[0]


def one_size(node: Node) -> tuple[GpuGroup, ...]:
    return (GpuGroup("gpu", node),)


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


def test_serve_config_in_the_manifest_equals_the_file_except_address_proxies_and_routers() -> None:
    text = uncommented(TEXT, "adapters", "training", "llama")
    file = config_of(text).raw
    changed = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 8000}}
    carried = yaml.safe_load(manifest(text, routers=1)["spec"]["serveConfigV2"])
    assert carried == file | changed
    with_two = yaml.safe_load(manifest(text)["spec"]["serveConfigV2"])
    assert with_two["applications"][:-1] == file["applications"][:-1]
    router, *stages = file["applications"][-1]["deployments"]
    more = router | {
        "max_replicas_per_node": 1,
        "autoscaling_config": router["autoscaling_config"] | {"min_replicas": 2},
    }
    assert with_two["applications"][-1]["deployments"] == [more, *stages]


@pytest.mark.parametrize(
    ("written", "carried"),
    [
        ({}, {"num_replicas": 2, "max_replicas_per_node": 1}),
        ({"num_replicas": 5}, {"num_replicas": 5, "max_replicas_per_node": 1}),
        ({"max_replicas_per_node": 3}, {"num_replicas": 2, "max_replicas_per_node": 3}),
        (
            {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1, "upscale_delay_s": 5}},
            {
                "autoscaling_config": {"min_replicas": 2, "max_replicas": 2, "upscale_delay_s": 5},
                "max_replicas_per_node": 1,
            },
        ),
        (
            {"num_replicas": "auto"},
            {
                "num_replicas": "auto",
                "autoscaling_config": {"min_replicas": 2},
                "max_replicas_per_node": 1,
            },
        ),
    ],
)
def test_two_routers_run_on_two_nodes_unless_the_file_wants_more(
    written: dict[str, Any], carried: dict[str, Any]
) -> None:
    deployments = [{"name": "Router", **written}]
    args = scripted_config()["applications"][-1]["args"]
    app = {"import_path": "r2_serve.app:build", "args": args, "deployments": deployments}
    once = on_pods({"applications": [app]})
    assert once["applications"][0]["deployments"] == [{"name": "Router", **carried}]
    assert on_pods(once) == once, "a second time changes nothing"


def test_cpu_pods_are_on_different_machines_and_go_one_at_a_time() -> None:
    made, budget = documents()
    assert group(made, "cpu")["minReplicas"] == 2
    labels = {"app.kubernetes.io/instance": "r2", "ray.io/group": "cpu"}
    pod = group(made, "cpu")["template"]["spec"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert "topologySpreadConstraints" not in group(made, "gpu")["template"]["spec"]
    assert (budget["apiVersion"], budget["kind"]) == ("policy/v1", "PodDisruptionBudget")
    assert budget["metadata"] == {"name": "r2-cpu", "namespace": "default"}
    assert budget["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": labels},
    }
    assert len(documents(routers=1)) == 1, "one pod has nothing to keep"


def test_routers_that_would_write_one_database_are_refused_or_named() -> None:
    budgets, database = "counts the budgets of client keys for itself", "One machine alone may write"
    two = manifest_text(config_of(TEXT), Options())
    assert budgets in two and database not in two
    spend = with_server(keys_file="/etc/r2/keys.yaml", spend_file="/var/lib/r2/spend.sqlite")
    claims = {"books": "/var/lib/r2"}
    of_file = manifest_text(config_of(spend), Options(claims=claims))
    assert "One machine alone may write /var/lib/r2/spend.sqlite" in of_file, "the file lets 4 routers run"
    with pytest.raises(ConfigError, match=r"spend\.sqlite is a SQLite file"):
        manifest(spend, claims=claims, routers=2)
    fixed = edited("    max_replicas: 4\n", "    max_replicas: 1\n", spend)
    one = manifest_text(config_of(fixed), Options(claims=claims))
    assert budgets not in one and database not in one
    assert group(manifest(fixed, claims=claims), "cpu")["maxReplicas"] == 1
    assert len(documents(fixed, claims=claims)) == 1, "one pod has no budget"


def test_redis_keeps_the_state_of_ray_and_its_password_stays_in_a_secret() -> None:
    assert "gcsFaultToleranceOptions" not in cluster_of(manifest())
    assert cluster_of(manifest(redis="redis:6379"))["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379"
    }
    made = cluster_of(manifest(redis="redis:6379", redis_secret="redis-pw"))["gcsFaultToleranceOptions"]
    assert made["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis-pw", "key": "password"}}}
    assert made.keys() <= KNOWN["gcsFaultToleranceOptions"]


def test_manifest_holds_only_keys_that_kuberay_knows() -> None:
    made = manifest(auth_secret="token", claims={"models": "/models"}, redis="redis:6379")
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
    shared = group(manifest(gpu_groups=one_size(Node(cpus=8, memory_gib=32, gpus=2))), "gpu")
    assert (shared["minReplicas"], shared["maxReplicas"]) == (2, 4)


def test_router_decomposer_and_allocator_share_cpu_pods() -> None:
    cpu = group(manifest(routers=1), "cpu")
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (1, 1), "4 x 1 + 4 x 0.5 + 4 x 0.5 CPUs at the most"
    small = group(manifest(routers=1, cpu_node=Node(cpus=2, memory_gib=8)), "cpu")
    assert (small["minReplicas"], small["maxReplicas"]) == (1, 4)
    spread = group(manifest(), "cpu")
    assert (spread["minReplicas"], spread["maxReplicas"]) == (2, 4), "one router per node"


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
        manifest(two, gpu_groups=one_size(Node(cpus=4, memory_gib=16, gpus=1)))


LARGE, SMALL = Node(64, 512, 4), Node(4, 16, 1, "nvidia.com/mig-1g.10gb")


def test_each_model_gets_pods_of_the_group_that_it_names_or_of_the_first_that_is_large_enough() -> None:
    four = edited("0.5B-Instruct}", "0.5B-Instruct, engine_kwargs: {tensor_parallel_size: 4}}", TEXT)
    pin = "  deployments: [{name: Model, ray_actor_options: {num_gpus: 1, resources: {big: 1}}}]\n"
    pinned = edited("1.5B-Instruct}, max_replicas: 2}\n", f"1.5B-Instruct}}, max_replicas: 2}}\n{pin}", four)
    groups = (GpuGroup("small", SMALL, (0, 6)), GpuGroup("big", LARGE))
    made = manifest(pinned, gpu_groups=groups, gpu_selector={"big:gpu": "h100", "zone": "a"})
    small, big = group(made, "small"), group(made, "big")
    assert (small["minReplicas"], small["maxReplicas"]) == (0, 6)
    assert (big["minReplicas"], big["maxReplicas"]) == (2, 3), "2 of four GPUs, and 2 of one share a pod"
    assert json.loads(json.loads(big["rayStartParams"]["resources"])) == {"big": 4}
    assert "resources" not in small["rayStartParams"]
    devices = [spec["template"]["spec"]["containers"][0]["resources"]["limits"] for spec in (small, big)]
    assert devices[0]["nvidia.com/mig-1g.10gb"] == "1" and devices[1]["nvidia.com/gpu"] == "4"
    assert small["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    assert big["template"]["spec"]["nodeSelector"] == {"zone": "a", "gpu": "h100"}


def test_replica_larger_than_every_group_is_named_with_their_sizes() -> None:
    eight = edited("0.5B-Instruct}", "0.5B-Instruct, engine_kwargs: {tensor_parallel_size: 8}}", TEXT)
    with pytest.raises(
        ConfigError, match=r"m-qwen2.5-0.5b/Model takes 8 GPU.*small \(1 GPU\), big \(4 GPU\)"
    ):
        manifest(eight, gpu_groups=(GpuGroup("small", SMALL), GpuGroup("big", LARGE)))


def test_placement_group_may_span_pods_unless_it_is_strict() -> None:
    bundles = f"placement_group_bundles: [{', '.join(8 * ['{CPU: 1, GPU: 1}'])}]"
    alone = "  deployments: [{name: Model, ray_actor_options: {num_gpus: 0}, "
    spans = edited(
        "0.5B-Instruct}, max_replicas: 2}\n",
        f"0.5B-Instruct}}, max_replicas: 2}}\n{alone}{bundles}}}]\n",
        TEXT,
    )
    big = group(manifest(spans, gpu_groups=(GpuGroup("big", LARGE),)), "big")
    assert (big["minReplicas"], big["maxReplicas"]) == (3, 6), "8 GPUs of one replica and 3 of others"
    strict = edited(bundles, f"{bundles}, placement_group_strategy: STRICT_PACK", spans)
    with pytest.raises(ConfigError, match="takes 8 GPU, a node has 4"):
        manifest(strict, gpu_groups=(GpuGroup("big", LARGE),))
    with pytest.raises(ConfigError, match="STRICT_SPREAD"):
        manifest(strict.replace("STRICT_PACK", "STRICT_SPREAD"))


def test_groups_of_the_command_line_are_read_and_faults_are_named() -> None:
    def asked(*words: str) -> str:
        done = CliRunner().invoke(r2_serve_command, ["kuberay", "--config", str(REFERENCE), *words])
        return " ".join(done.output.split())

    assert _group("h100=64cpu,512gi,4gpu,0:2") == GpuGroup("h100", LARGE, (0, 2))
    assert _group("small=4cpu,16gi,1mig-1g.10gb") == GpuGroup("small", SMALL)
    assert "a process sees only one" in asked("--gpu-group", "small=4cpu,16gi,2mig-1g.10gb")
    assert "expected such as h100=" in asked("--gpu-group", "h100")
    assert "`cpu` is taken" in asked("--gpu-group", "cpu=4cpu,16gi,1gpu")
    assert "are for one group" in asked("--gpu-group", "a=4cpu,16gi,1gpu", "--gpu-nodes", "1:2")


def test_gpu_nodes_have_the_custom_resources_of_the_models() -> None:
    start = group(manifest(uncommented(TEXT, "training"), gpu_groups=one_size(Node(8, 32, gpus=2))), "gpu")[
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
