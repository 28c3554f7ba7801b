"""The strict reader of Serve configs against the schema of the installed Ray Serve, and cluster.yaml against
the launcher's.

No cluster is started; the tier is `ray` as importing its schema takes seconds.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve import serve_config
from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT
from r2_serve.ops.local.cluster import ENVIRONMENT
from r2_serve.serve_config.document import Problem
from tests.ops.test_kuberay import TEXT
from tests.serve_config.test_serve_config import (
    ALTERNATIVES,
    CLUSTER,
    EMBEDDED,
    ENVIRON,
    REFERENCE,
    SMALL,
    edited,
    errors,
    uncommented,
)

pytestmark = pytest.mark.ray

Check = Callable[[str], list[Problem]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def check_text(text: str) -> list[Problem]:
        path = tmp_path / "serve_config.yaml"
        path.write_text(text)
        return serve_config.check(path, environ=ENVIRON)

    return check_text


MODEL = "applications[0].deployments[0]"


@pytest.mark.parametrize(
    ("old", "new", "where", "suggested"),
    [
        ("http_options:", "http_option:", "http_option", "http_options"),
        ("port: 8000", "prot: 8000", "http_options.prot", "port"),
        (
            "  route_prefix: null",
            "  route_prefix: null\n  runtime_envs: {}",
            "applications[0].runtime_envs",
            "runtime_env",
        ),
        (
            "  route_prefix: null",
            "  route_prefix: null\n  runtime_env: {env_var: {}}",
            "applications[0].runtime_env.env_var",
            "env_vars",
        ),
        (
            "    max_ongoing_requests:",
            "    max_ongoing_request:",
            f"{MODEL}.max_ongoing_request",
            "max_ongoing_requests",
        ),
        (
            "      max_replicas:",
            "      max_replica:",
            f"{MODEL}.autoscaling_config.max_replica",
            "max_replicas",
        ),
        (
            "      max_replicas: 2",
            "      max_replicas: 2\n      policy: {policy_functoin: 'a:b'}",
            f"{MODEL}.autoscaling_config.policy.policy_functoin",
            "policy_function",
        ),
        ("      num_cpus:", "      num_cpu:", f"{MODEL}.ray_actor_options.num_cpu", "num_cpus"),
        (
            "      num_cpus: 1",
            "      num_cpus: 1\n    logging_config: {log_leval: INFO}",
            f"{MODEL}.logging_config.log_leval",
            "log_level",
        ),
        (
            "      num_cpus: 1",
            "      num_cpus: 1\n    backpressure_config: {status: 429}",
            f"{MODEL}.backpressure_config.status",
            "status_code",
        ),
        (
            "      num_cpus: 1",
            "      num_cpus: 1\n    request_router_config: {max_backof_s: 1}",
            f"{MODEL}.request_router_config.max_backof_s",
            "max_backoff_s",
        ),
        (
            "      num_cpus: 1",
            "      num_cpus: 1\n    gang_scheduling_config: {gang_size: 1, gang_sise: 1}",
            f"{MODEL}.gang_scheduling_config.gang_sise",
            "gang_size",
        ),
        (
            "  route_prefix: null",
            "  route_prefix: null\n  autoscaling_policy: {policy_function: 'a:b', policy_kwarg: {}}",
            "applications[0].autoscaling_policy.policy_kwarg",
            "policy_kwargs",
        ),
    ],
)
def test_unknown_key_at_any_level_of_serves_schema_is_reported(
    check: Check, old: str, new: str, where: str, suggested: str
) -> None:
    (problem,) = [
        problem for problem in errors(check(edited(old, new))) if problem.message.startswith("unknown key")
    ]
    assert (problem.where, problem.message) == (where, f"unknown key; did you mean '{suggested}'?")
    assert where.rpartition(".")[2] in edited(old, new).splitlines()[problem.line - 1]


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("port: 8000", "port: http", "http_options.port", "expected a whole number"),
        ("port: 8000", "port: yes", "http_options.port", "got yes, which YAML reads as true or false"),
        ("max_replicas: 2", "max_replicas: true", f"{MODEL}.autoscaling_config.max_replicas", "got true"),
        ("num_cpus: 1", "num_cpus: on", f"{MODEL}.ray_actor_options.num_cpus", "got on"),
        (
            "num_cpus: 1",
            "num_cpus: 1\n      resources: {serve_gpu: yes}",
            f"{MODEL}.ray_actor_options.resources.serve_gpu",
            "expected a number",
        ),
        (
            "num_cpus: 1",
            "num_cpus: 1\n      runtime_env: {env_vars: {X: 1}}",
            f"{MODEL}.ray_actor_options.runtime_env.env_vars.X",
            "put the value in quotes",
        ),
        (
            "  route_prefix: null",
            "  route_prefix: null\n  runtime_env: {pip: 3}",
            "applications[0].runtime_env.pip",
            "must be of type str or List[str]",
        ),
        (
            "max_replicas: 2",
            "max_replicas: 2\n      policy: {policy_function: 'no_such_module:f'}",
            f"{MODEL}.autoscaling_config.policy.policy_function",
            "No module named 'no_such_module'",
        ),
        (
            "max_ongoing_requests: 64",
            "max_ongoing_requests: 0",
            f"{MODEL}.max_ongoing_requests",
            "greater than 0",
        ),
        (
            "max_ongoing_requests: 64",
            "max_ongoing_requests: 64\n    num_replicas: 2",
            MODEL,
            "num_replicas is not allowed",
        ),
        (
            "max_replicas: 2",
            "max_replicas: 2\n      min_replicas: 3",
            f"{MODEL}.autoscaling_config",
            "max_replicas",
        ),
        (
            "max_replicas: 2",
            "max_replicas: two",
            f"{MODEL}.autoscaling_config.max_replicas",
            "expected a whole number",
        ),
        (
            "      num_cpus: 1",
            "      num_cpus: -1",
            f"{MODEL}.ray_actor_options.num_cpus",
            "greater than or equal to 0",
        ),
        ("max_queued_requests: 64", "max_queued_requests: 0", f"{MODEL}", "max_queued_requests must be -1"),
        (
            "proxy_location: HeadOnly",
            "proxy_location: Headonly",
            "proxy_location",
            "did you mean 'HeadOnly'?",
        ),
        ("  - name: Model", "  - Model\n  - name: Model", MODEL, "must be a mapping"),
        ("- name: m-small", "-\n- name: m-small", "applications[0]", "must be a mapping"),
    ],
)
def test_wrong_value_in_serves_sections_is_reported(
    check: Check, old: str, new: str, where: str, message: str
) -> None:
    text = f"proxy_location: HeadOnly\n{SMALL}"
    assert text.count(old) == 1
    found = [problem for problem in check(text.replace(old, new)) if problem.where == where]
    assert [message in problem.message and problem.severity == "error" for problem in found] == [True]


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("- name: r2", "- name: m-small", "applications[1].name"),
        ("route_prefix: null", "route_prefix: /", "applications[1].route_prefix"),
    ],
)
def test_repeated_application_is_reported_once_with_its_place(
    check: Check, old: str, new: str, where: str
) -> None:
    assert [
        problem.where
        for problem in errors(check(edited(old, new)))
        if problem.where.endswith((".name", ".route_prefix", "applications"))
    ] == [where]


def test_all_problems_are_reported_in_the_order_of_their_lines(check: Check) -> None:
    text = (
        SMALL.replace("max_running:", "max_runing:")
        .replace("num_cpus:", "num_cpu:")
        .replace("port:", "prot:")
    )
    problems = check(text)
    assert [problem.where for problem in problems] == [
        "http_options.prot",
        f"{MODEL}.ray_actor_options.num_cpu",
        "applications[1].args.server.max_runing",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "applications: 3",
        "applications: [3]",
        "applications: []",
        "applications:",
        "x: 1",
        "applications: {a: 1}",
    ],
)
def test_unreadable_files_are_problems_and_no_crashes(check: Check, text: str) -> None:
    assert errors(check(text))


@pytest.mark.parametrize("alternatives", [[], *([name] for name in ALTERNATIVES), ALTERNATIVES], ids="+".join)
def test_reference_config_is_valid_for_ray_with_any_alternative(
    check: Check, alternatives: list[str]
) -> None:
    found = check(uncommented(REFERENCE.read_text(), *alternatives))
    assert [problem for problem in found if "no directory /mnt/r2/adapters/" not in problem.message] == []
    assert all(problem.severity == "warning" for problem in found), (
        "adapters need to be on the nodes, not here"
    )


@pytest.mark.parametrize("path", [REFERENCE, EMBEDDED], ids=["reference", "embedded"])
def test_shipped_config_loads_and_is_accepted_by_serve_deploy(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = serve_config.load(path)
    schema = ServeDeploySchema.model_validate(copy.deepcopy(config.raw))
    assert [app.name for app in schema.applications] == [*config.model_apps, config.router_app_name]
    assert (config.http_host, config.http_port, config.proxy_location) == ("127.0.0.1", 8000, "HeadOnly")
    assert config.written == yaml.safe_load(path.read_text())
    assert {model.engine.app for model in config.router.models if model.engine.kind == "served"} == set(
        config.model_apps
    )


def test_load_lists_every_error_and_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    path = tmp_path / "c.yaml"
    path.write_text(SMALL.replace("max_running:", "max_runing:").replace("num_cpus:", "num_cpu:"))
    with pytest.raises(ConfigError) as caught:
        serve_config.load(path)
    assert "2 errors" in caught.value.message
    assert (
        "max_runing" in caught.value.message
        and "num_cpu'" not in caught.value.message
        and "SOME_KEY" not in caught.value.message
    )
    assert "did you mean 'num_cpus'?" in caught.value.message


def test_warnings_do_not_stop_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    path = tmp_path / "c.yaml"
    path.write_text(SMALL)
    assert [problem.severity for problem in serve_config.check(path)] == ["warning"]
    assert serve_config.load(path).router_app_name == "r2"


def _launcher_config(text: str) -> dict[str, Any]:
    """What `ray up` would work with, checked by its own offline validation."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def test_a_cluster_may_have_an_endpoint_on_each_machine() -> None:
    """Serve's throughput mode would overrule `EveryNode`: no worker pod of Kubernetes would become ready."""
    asked = "from ray.serve._private import constants; print(constants.RAY_SERVE_ENABLE_DIRECT_INGRESS)"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    for environment, is_overruled in ((CLUSTER_ENVIRONMENT, False), (ENVIRONMENT, True)):
        done = subprocess.run(
            [sys.executable, "-c", asked], env=plain | environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(is_overruled)


def test_cluster_is_accepted_by_ray_up() -> None:
    config = _launcher_config(CLUSTER.read_text())
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}
    gpus = (
        config["available_node_types"]["gpu"]["resources"]["GPU"]
        * config["available_node_types"]["gpu"]["max_workers"]
    )
    needed = sum(app["name"] != "r2" for app in yaml.safe_load(REFERENCE.read_text())["applications"])
    assert gpus >= needed == 4


def test_cluster_that_trains_too_is_accepted_by_ray_up() -> None:
    assert set(_launcher_config(uncommented(CLUSTER.read_text(), "training"))["available_node_types"]) == {
        "head",
        "cpu",
        "gpu",
        "train",
    }


@pytest.mark.parametrize("others", [[], ["training"]], ids=["serving", "training"])
def test_cluster_on_premises_is_accepted_by_ray_up(others: list[str]) -> None:
    text = uncommented(CLUSTER.read_text(), *others)
    raw = yaml.safe_load(text)
    added = yaml.safe_load(uncommented(text[text.index("# >>> on-prem") :], "on-prem"))
    kept = {
        key: value
        for key, value in raw.items()
        if key not in ("provider", "head_node_type", "available_node_types")
    }
    config = _launcher_config(yaml.safe_dump(kept | added))
    assert config["provider"]["type"] == "local"
    (workers,) = config["available_node_types"].values()
    assert workers["min_workers"] == workers["max_workers"] == len(added["provider"]["worker_ips"]), (
        "all of them, all the time"
    )


@pytest.mark.parametrize("others", [[], ["training"]], ids=["serving", "training"])
def test_every_node_type_of_the_cloud_names_the_same_image(others: list[str]) -> None:
    types = yaml.safe_load(uncommented(CLUSTER.read_text(), *others))["available_node_types"]
    assert len({node["node_config"]["ImageId"] for node in types.values()}) == 1


def test_kuberay_command_prints_a_manifest_whose_config_serve_takes(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    def kuberay(path: Path) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "r2_serve.cli",
            "kuberay",
            "--config",
            str(path),
            "--namespace",
            "ai",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    refused = kuberay(REFERENCE)
    assert (refused.returncode, refused.stdout) == (
        1,
        "",
    ) and "keys_file: /etc/r2/keys.yaml" in refused.stderr
    (tmp_path / "c.yaml").write_text(TEXT)
    made = kuberay(tmp_path / "c.yaml")
    assert made.returncode == 0, made.stderr
    manifest, budget = yaml.safe_load_all(made.stdout)
    assert manifest["metadata"] | {"annotations": None} == {
        "name": "r2",
        "namespace": "ai",
        "annotations": None,
    }
    assert (budget["kind"], budget["metadata"]["namespace"]) == ("PodDisruptionBudget", "ai")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert (schema.http_options.host, schema.proxy_location.value) == ("0.0.0.0", "EveryNode")
    assert [
        problem
        for problem in serve_config.check(tmp_path / "c.yaml", environ=ENVIRON)
        if problem.severity == "error"
    ] == []


def test_monitoring_command_writes_files_for_both_worlds(tmp_path: Path) -> None:
    for more, names in (
        ([], {"prometheus.yml", "r2_alerts.yml", "grafana"}),
        (["--kubernetes"], {"monitoring.yaml"}),
    ):
        out = tmp_path / "-".join(["out", *more])
        command = [
            sys.executable,
            "-m",
            "r2_serve.cli",
            "monitoring",
            "--config",
            str(REFERENCE),
            "--out",
            str(out),
            *more,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert {path.name for path in out.iterdir()} == names
    kinds = [
        made["kind"]
        for made in yaml.safe_load_all((tmp_path / "out---kubernetes/monitoring.yaml").read_text())
    ]
    assert kinds == ["PodMonitor", "ScrapeConfig", "PrometheusRule", "ConfigMap"]
