"""docs/larger-models.md: every block is valid, fits its manifest, and names what the pinned vLLM knows."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve.ops.deploy_files.pods import GpuGroup, Node
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from r2_serve.serve_config import check, load
from tests import ROOT
from tests.support.scripted_pool import scripted_config

PAGE = (ROOT / "docs" / "larger-models.md").read_text()
BLOCKS = {
    part.splitlines()[0]: yaml.safe_load(block)
    for part in PAGE.split("\n## ")[1:]
    for block in re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)
}
GROUPS = (GpuGroup("one", Node(16, 128, 2)), GpuGroup("big", Node(64, 512, 4)))


def file_with(apps: list[dict[str, Any]], folder: Path) -> Path:
    """A config with `apps`, a card for each, and a router over them."""
    cards = [
        {
            "name": app["name"].removeprefix("m-"),
            "usd_per_mtok_in": 1,
            "usd_per_mtok_out": 2,
            "context_tokens": app["args"]["engine"]["engine_kwargs"]["max_model_len"],
            "fallbacks": ["large"],
            "engine": {"kind": "served", "app": app["name"]},
        }
        for app in apps
    ]
    config = scripted_config(more_models=cards, server={"keys_file": "/etc/r2/keys.yaml"})
    config["applications"][:0] = apps
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def test_page_has_a_block_for_each_way_to_run_a_larger_model() -> None:
    assert len(BLOCKS) == PAGE.count("```yaml") == 6


@pytest.mark.parametrize("title", BLOCKS)
def test_block_is_valid_and_has_pods_that_hold_it(title: str, tmp_path: Path) -> None:
    path = file_with(BLOCKS[title], tmp_path)
    about_models = [p for p in check(path, environ={}) if p.severity == "error" or "Model" in p.where]
    assert about_models == []
    manifest = next(yaml.safe_load_all(manifest_text(load(path), Options(gpu_groups=GROUPS))))
    groups = {group["groupName"]: group for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert groups.keys() & {"one", "big"}
    if title == "A model on several nodes":
        assert groups["big"]["minReplicas"] == 2


@pytest.mark.parametrize("title", BLOCKS)
def test_speculative_fields_are_those_of_the_installed_vllm(title: str) -> None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed")
    source = (Path(spec.origin).parent / "config" / "speculative.py").read_text(encoding="utf-8")
    (section,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "SpeculativeConfig"
    )
    known = {field.target.id for field in section.body if isinstance(field, ast.AnnAssign)}  # type: ignore[union-attr]
    for app in BLOCKS[title]:
        assert app["args"]["engine"]["engine_kwargs"].get("speculative_config", {}).keys() <= known
