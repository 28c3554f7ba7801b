"""Starts an agent of another maker in a home of its own, in which it finds two files to read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cells import CITIES, weather

NODE_MODULES = Path(os.environ["R2_NODE_HOME"]) / "node_modules"
WORK = Path.home() / "work"
TIMEOUT_S = 25.0


def binary(pattern: str) -> str:
    """The native program of an npm package. Raises: FileNotFoundError."""
    found = [path for path in NODE_MODULES.glob(pattern) if "baseline" not in str(path)]
    if not found:
        raise FileNotFoundError(f"{pattern} is not in {NODE_MODULES}: has npm no build for this machine?")
    return str(found[0])


def lay_out() -> Path:
    """The folder in which the agent works, with a file for each city."""
    WORK.mkdir(exist_ok=True)
    for city in CITIES:
        (WORK / f"{city}.txt").write_text(weather(city))
    return WORK


def read_both(note: str, tool: str, argument: str, **more: str) -> str:
    """A question that the scripted model answers with two commands of the agent's shell at the same time."""
    calls = [json.dumps({argument: f"cat {city}.txt", **more}) for city in CITIES]
    return "\n".join([note, *(f"CALL {tool} {call}" for call in calls)])


def run(command: list[str], text: str, **environment: str) -> tuple[int, list[dict[str, Any]], str]:
    """Runs the agent with a prompt on its standard input. Gives the exit status, its lines of JSON, and all
    of its output."""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        cwd=lay_out(),
        timeout=TIMEOUT_S,
        env={"PATH": os.environ["PATH"], "HOME": str(Path.home()), **environment},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print(" ".join(command), "exit", done.returncode, done.stdout[-3000:], done.stderr[-1500:], sep="\n")
    return done.returncode, [json.loads(line) for line in lines], done.stderr + done.stdout
