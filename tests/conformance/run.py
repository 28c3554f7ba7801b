"""Runs every client of `clients/` against the endpoint, and schemathesis against OpenAI's description.

    python -m tests.conformance.run                  all; the first run installs the clients, about 1 GB
    python -m tests.conformance.run openai_node schema

Everything is installed under runs/conformance; only package registries are reached. Exit status 1: a check
failed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
HOME = Path("runs/conformance").resolve()
CLIENTS = {
    "openai_python": "openai",
    "openai_node": "openai (npm)",
    "langchain_chat": "langchain-openai",
    "litellm_sdk": "litellm",
    "llm_command": "llm",
    "lm_eval_chat": "lm_eval",
    "inspect_model": "inspect-ai",
    "schema": "schemathesis",
}
"""The script, and the package whose version is shown."""
CHECKS = ("chat", "stream", "usage", "models", "error")
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Outcome:
    """The result of one check of one client."""

    client: str
    check: str
    outcome: str
    detail: str = ""


def install() -> None:
    """Installs a virtual environment and node_modules from the lists in this folder, once for each state."""
    lists = [HERE / "requirements.txt", HERE / "package.json"]
    stamp, wanted = HOME / "installed", "".join(path.read_text() for path in lists)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing the clients under {HOME}: some minutes, about 1 GB", flush=True)
    HOME.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", HOME / "venv"], check=True)
    subprocess.run([HOME / "venv/bin/pip", "install", "-q", "uv==0.13.9"], check=True)
    environment = {**os.environ, "VIRTUAL_ENV": str(HOME / "venv")}
    subprocess.run(
        [HOME / "venv/bin/uv", "pip", "install", "-q", "-r", lists[0]], check=True, env=environment
    )
    if shutil.which("npm"):
        shutil.copy(lists[1], HOME / "package.json")
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], check=True, cwd=HOME)
    stamp.write_text(wanted)


@contextlib.contextmanager
def endpoint() -> Iterator[dict[str, str]]:
    """Starts the endpoint in a process of its own; gives the environment variables that the clients need."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.conformance.endpoint", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url, key, spent = process.stdout.readline().split()
            yield {"R2_BASE_URL": url, "R2_KEY": key, "R2_SPENT_KEY": spent, "R2_NODE_HOME": str(HOME)}
        finally:
            process.terminate()
            process.wait()


def run(client: str, where: dict[str, str]) -> list[Outcome]:
    """Runs every check of one client, in an environment without proxies and keys of others."""
    script = next((HERE / "clients").glob(f"{client}.*"))
    interpreter = "node" if script.suffix == ".mjs" else str(HOME / "venv/bin/python")
    if shutil.which(interpreter) is None:
        return [Outcome(client, check, "not run", f"{interpreter} is not here") for check in CHECKS]
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "HF_HUB_OFFLINE": "1",
            "R2_API_KEY": where["R2_KEY"],
            **where,
        }
        done = subprocess.run(
            [interpreter, script],
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_S,
            cwd=home,
        )
    (HOME / f"{client}.log").write_text(done.stdout + done.stderr)
    lines = [
        line.removeprefix("R2-CHECK ") for line in done.stdout.splitlines() if line.startswith("R2-CHECK ")
    ]
    outcomes = [Outcome(client, **json.loads(line)) for line in lines]
    if done.returncode != 0 or not outcomes:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        outcomes.append(Outcome(client, "all", "failed", f"exit status {done.returncode}: {last[:300]}"))
    return outcomes


def version(package: str) -> str:
    if package.endswith("(npm)"):
        manifest = HOME / "node_modules" / package.split()[0] / "package.json"
        return str(json.loads(manifest.read_text())["version"]) if manifest.exists() else "-"
    code = f"import importlib.metadata; print(importlib.metadata.version('{package}'))"
    return subprocess.run(
        [HOME / "venv/bin/python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def table(outcomes: list[Outcome]) -> str:
    """The table of docs/conformance.md."""
    marks = {"ok": "ok", "not offered by the client": "-"}
    lines = ["| client | version | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 2) + "|"]
    for client in dict.fromkeys(outcome.client for outcome in outcomes if outcome.client != "schema"):
        cells = {
            outcome.check: marks.get(outcome.outcome, outcome.outcome)
            for outcome in outcomes
            if outcome.client == client
        }
        package = CLIENTS[client]
        lines.append(
            f"| {package} | {version(package)} | "
            + " | ".join(cells.get(check, "?") for check in CHECKS)
            + " |"
        )
    schema = [outcome for outcome in outcomes if outcome.client == "schema"]
    lines += ["", "| schema | outcome | |", "|---|---|---|"] if schema else []
    lines += [f"| {outcome.check} | {outcome.outcome} | {outcome.detail} |" for outcome in schema]
    return "\n".join(lines)


def main(wanted: list[str]) -> int:
    unknown = [name for name in wanted if name not in CLIENTS]
    if unknown:
        print(f"no client {unknown[0]!r}; choose among {', '.join(CLIENTS)}", file=sys.stderr)
        return 2
    install()
    outcomes: list[Outcome] = []
    with endpoint() as where:
        for client in wanted or CLIENTS:
            print(f"{client} ...", flush=True)
            outcomes += run(client, where)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    print(f"\n{datetime.datetime.now(datetime.UTC).date()}\n\n{table(outcomes)}\n")
    for outcome in failed:
        print(f"FAILED {outcome.client} {outcome.check}: {outcome.detail} (see {HOME / outcome.client}.log)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
