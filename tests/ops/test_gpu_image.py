"""Image and cluster of GPU nodes: versions, directories and variables that vLLM needs to start."""

from __future__ import annotations

import re

import pytest

from r2_serve.engines.vllm_arguments import ENVIRONMENT
from r2_serve.ops.local.cluster import ENVIRONMENT as LOCAL
from tests import ROOT
from tests.ops.test_kuberay import manifest, pods

DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLES = dict(re.findall(r"(?:ENV |\s)([A-Z_]+)=([^\s\\]+)", DOCKERFILE))
PIN = re.compile(r"^([\w-]+)==([\w.]+)", re.MULTILINE)


def test_every_path_turns_off_the_sampler_that_compiles_itself_and_reports_of_use() -> None:
    assert ENVIRONMENT == {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1"}
    assert ENVIRONMENT.items() <= VARIABLES.items() and ENVIRONMENT.items() <= LOCAL.items()


def test_weights_and_kernels_are_on_one_claim_whose_directories_belong_to_the_user() -> None:
    for name in ("HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"):
        assert VARIABLES[name].startswith("/models/") and f"${name}" in DOCKERFILE
    assert "chown -R ray:ray /models /home/ray/.cache" in DOCKERFILE
    assert "--claim models=/models " in (ROOT / "docs/deployment/kubernetes.md").read_text()
    for pod in pods(manifest(claims={"models": "/models"})):
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_drivers_libraries_of_gke_are_on_the_path() -> None:
    assert "/usr/local/nvidia/lib64" in VARIABLES["LD_LIBRARY_PATH"].split(":")


def test_image_has_a_target_for_serving_and_one_for_training() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    assert stages == [("python:3.11-slim-bookworm", "serve"), ("serve", "train"), ("serve", "")]
    assert "'.[train]'" in DOCKERFILE


@pytest.mark.parametrize("extra", ["gpu", "train"])
def test_gpu_constraints_hold_the_pins_of_pyproject(extra: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (section,) = re.findall(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    pins = set(re.findall(r'"([\w-]+)==([\w.]+)"', section))
    assert pins and pins <= set(PIN.findall((ROOT / "constraints-gpu.txt").read_text()))


def test_image_and_cluster_install_at_the_gpu_constraints() -> None:
    for name in ("Dockerfile", "cluster.yaml"):
        text = (ROOT / name).read_text()
        installs = [part for part in text.split("uv pip install")[1:] if "boto3" not in part.splitlines()[0]]
        assert installs and all("constraints-gpu.txt" in part.splitlines()[0] for part in installs), name
