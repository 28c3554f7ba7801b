"""How long docs/tutorial.md takes: its commands, with scripted providers in place of OpenAI and DeepSeek.

    python -m benchmarks.first_minutes
    python -m benchmarks.first_minutes --install

Each command is run as the tutorial has it, in an empty directory, but for `init --at PROVIDER=...`, which
leads to the scripted providers. They answer each call after `--delay` seconds, so the time of `ask` is that
of the router and its processes, not that of real models. `--install` first makes a virtual environment in a
fresh clone of this repository and installs R2 there, so its time is mostly the download.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.ops.local.cluster import LOOPBACK, free_port

MODELS = {"openai": "gpt-6-luna", "deepseek": "deepseek-v4-pro"}
KEYS = {"OPENAI_API_KEY": "scripted", "DEEPSEEK_API_KEY": "scripted"}
QUESTION = "How many years after the Eiffel Tower did the Empire State Building open?"
STEPS = (
    "Find the year in which the Eiffel Tower opened.",
    "Find the year in which the Empire State Building opened.",
    "Subtract #1 from #2.",
)
PLAN = {
    "subtasks": [
        {"id": 1, "text": STEPS[0], "depends_on": []},
        {"id": 2, "text": STEPS[1], "depends_on": []},
        {"id": 3, "text": STEPS[2], "depends_on": [1, 2]},
    ]
}
ALLOCATION = {"models": [MODELS["openai"], MODELS["openai"], MODELS["deepseek"]]}
ROOT = Path(__file__).resolve().parent.parent


def reply_to(request: dict[str, object]) -> str:
    """What the scripted model says: a plan, an allocation, or the answer of a step."""
    messages = request["messages"]
    assert isinstance(messages, list)
    last = str(messages[-1]["content"])
    schema = json.dumps(request.get("response_format", ""))
    if '"subtasks"' in schema:
        return json.dumps(PLAN)
    if '"models"' in schema:
        return json.dumps(ALLOCATION)
    if "1889" in last and "1931" in last:
        return "42 years"
    answers = {STEPS[0]: "1889", STEPS[1]: "1931"}
    return next((answer for step, answer in answers.items() if step in last), "?")


@contextmanager
def scripted_providers(delay_s: float) -> Iterator[str]:
    """Both providers at one address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": name} for name in MODELS.values()]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            time.sleep(delay_s)
            message = {"role": "assistant", "content": reply_to(request)}
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "scripted", "object": "chat.completion", "created": 0, "model": request["model"]}
            self._send({**head, "choices": [choice], "usage": usage})

        def _send(self, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()


def timed(command: list[str], directory: Path) -> tuple[float, str]:
    """Seconds and output of a command. Raises: SystemExit if it fails."""
    began = time.monotonic()
    done = subprocess.run(  # noqa: S603
        command, cwd=directory, env={**os.environ, **KEYS}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began, done.stdout


@contextmanager
def up(command: list[str], directory: Path, seconds: dict[str, float]) -> Iterator[None]:
    """The router, from its start to `ready` and until it is no longer needed."""
    began = time.monotonic()
    with subprocess.Popen(  # noqa: S603
        command, cwd=directory, env={**os.environ, **KEYS}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ready"):
                    break
            else:
                raise SystemExit(f"{' '.join(command)} did not get ready")
            seconds["up"] = time.monotonic() - began
            yield
        finally:
            process.terminate()


def installed(directory: Path, seconds: dict[str, float]) -> Path:
    """The `r2-serve` of a fresh clone with an environment of its own."""
    clone = directory / "r2"
    timed(["git", "clone", "-q", str(ROOT), str(clone)], directory)
    took_s, _ = timed([sys.executable, "-m", "venv", ".venv"], clone)
    seconds["pip install"] = took_s + timed([".venv/bin/pip", "install", "-q", "."], clone)[0]
    return clone / ".venv/bin/r2-serve"


def main(
    install: Annotated[bool, typer.Option("--install", help="Install R2 in a fresh clone first.")] = False,
    delay: Annotated[float, typer.Option(min=0, help="Seconds of a scripted call.")] = 0.4,
) -> None:
    """Run the commands of the tutorial, and print the seconds of each and the answer."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, scripted_providers(delay) as url:
        directory = Path(folder)
        r2 = installed(directory, seconds) if install else Path(sys.executable).parent / "r2-serve"
        models = [part for name, model in MODELS.items() for part in ("-m", f"{name}/{model}")]
        at = [part for name in MODELS for part in ("--at", f"{name}={url}/v1")]
        seconds["init"], _ = timed([str(r2), "init", *models, *at], directory)
        port = free_port()
        serve = [str(r2), "up", "--in-process", "--config", "r2.yaml", "--port", str(port)]
        with up(serve, directory, seconds):
            ask = ["ask", "--policy", "learned", QUESTION, "--url", f"http://{LOOPBACK}:{port}/v1"]
            seconds["ask"], answer = timed([str(r2), *ask], directory)
    print(answer)
    for name, took_s in {**seconds, "together": sum(seconds.values())}.items():
        print(f"{name:<12}{took_s:7.1f} s")
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    typer.run(main)
