"""Installs the clients under runs/conformance. Only package registries are reached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HOME = Path("runs/conformance").resolve()
LISTS = {"venv": HERE / "requirements.txt", "venv-instructor": HERE / "requirements-instructor.txt"}
"""What stands in each virtual environment."""
MANIFEST = HERE / "package.json"


def install(environments: set[str]) -> None:
    """Installs what is not there yet, once for each state of the lists. `node` stands for node_modules."""
    for name in sorted(environments):
        wanted, stamp = LISTS.get(name, MANIFEST).read_text(), HOME / f"{name}.installed"
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        HOME.mkdir(parents=True, exist_ok=True)
        if name == "node":
            _install_node()
        else:
            _install_python(name)
        stamp.write_text(wanted)


def _install_python(name: str) -> None:
    print(f"Installing Python clients into {HOME / name}: up to 1 GB, one minute", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", HOME / name], check=True)
    subprocess.run([HOME / name / "bin/pip", "install", "-q", "uv==0.13.9"], check=True)
    command = [HOME / name / "bin/uv", "pip", "install", "-q", "--compile-bytecode", "-r", LISTS[name]]
    subprocess.run(command, check=True, env={**os.environ, "VIRTUAL_ENV": str(HOME / name)})


def _install_node() -> None:
    """The agents are native programs in packages, so that no package needs to run a script."""
    if shutil.which("npm") is None:
        print("npm is not here: the clients for Node and the agents are left out", flush=True)
        return
    print(f"Installing clients for Node and agents into {HOME}/node_modules: 1.2 GB, one minute", flush=True)
    shutil.copy(MANIFEST, HOME / "package.json")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(command, check=True, cwd=HOME)


def version(package: str, environment: str) -> str:
    """The installed version of a package; `-` if it is not installed."""
    if environment == "node":
        manifest = HOME / "node_modules" / package / "package.json"
        return str(json.loads(manifest.read_text())["version"]) if manifest.exists() else "-"
    code = f"import importlib.metadata; print(importlib.metadata.version('{package}'))"
    command = [HOME / environment / "bin/python", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
