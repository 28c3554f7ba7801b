"""A session of faults on a real cluster writes no secret into any file.

The files are the logs of Ray and Serve, traces and the spend file. The provider answers every request with
its own Authorization header inside some fault, which a careless router would log.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.http.keys import entry_text, new_key
from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import load
from tests.support.scripted_pool import SMALL, scripted_config

pytestmark = pytest.mark.ray

SECRETS = {
    "PROVIDER_KEY": "canary-of-the-provider",
    "CLIENT_KEYS": "canary-of-client-one,canary-of-client-two",
}
WRONG_KEY, PROMPT = "canary-of-a-wrong-key", "canary-of-a-private-matter"
ANSWERED = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]
}


class Careless(BaseHTTPRequestHandler):
    """A provider that shows the key it was sent, in one fault after the other."""

    turns = itertools.count()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        key = self.headers["authorization"]
        error = json.dumps(
            {
                "error": {
                    "message": f"Incorrect API key provided: {key}",
                    "type": "x",
                    "param": key,
                    "code": key,
                }
            }
        )
        faults: list[tuple[int, dict[str, str], str]] = [
            (401, {}, error),
            (400, {}, error),
            (429, {"x-echo": key}, error),
            (500, {}, f"<html>{key}</html>"),
            (200, {}, error),
            (200, {}, f'{{"choices": [{{"message": "{key}'),
            (200, {"content-type": "text/event-stream"}, f"data: {error}\n\n"),
            (302, {"location": f"http://127.0.0.1:1/{key.replace(' ', '')}"}, ""),
            (200, {}, json.dumps({**ANSWERED, "model": key, "usage": {"prompt_tokens": key}})),
            (200, {}, json.dumps({**ANSWERED, "usage": {"prompt_tokens": 3, "completion_tokens": 1}})),
        ]
        status, headers, body = faults[next(self.turns) % len(faults)]
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        """A handler that logs nothing."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def config_of(provider: str, folder: Path) -> dict[str, Any]:
    """The scripted pool, with `small` and the planner at the careless provider."""
    server = {
        "api_keys_env": "CLIENT_KEYS",
        "keys_file": str(folder / "keys.yaml"),
        "spend_file": str(folder / "spend.sqlite"),
    }
    config = scripted_config(
        server={**server, "trace_dir": str(folder / "traces")}, limits={"deadline_s": 10}
    )
    for model in config["applications"][-1]["args"]["models"]:
        if model["name"] in (SMALL, "planner"):
            model["engine"] = {
                "kind": "openai",
                "model": "m",
                "base_url": provider,
                "api_key_env": "PROVIDER_KEY",
            }
    gone = {"m-small", "m-planner"}
    return {**config, "applications": [app for app in config["applications"] if app["name"] not in gone]}


def test_no_file_written_during_faults_holds_a_secret(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    key, entry = new_key("alice", budget_usd="0.0021")
    (tmp_path / "keys.yaml").write_text(entry_text(entry))
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config_of(provider, tmp_path)))

    import ray

    with local_cluster(load(path), port=free_port(), num_cpus=4) as url:
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        statuses, texts = ask_badly(url, ["canary-of-client-one", "canary-of-client-two", key])
    files = [file for folder in (session, tmp_path) for file in folder.rglob("*") if file.is_file()]
    logs = [file for file in files if session in file.parents]
    assert {200, 401, 429} <= statuses and len(logs) > 10
    lines = "".join(file.read_text(errors="replace") for file in logs)
    assert "route=/v1/chat/completions key=alice model=" in lines and "status=401" in lines, (
        "every request is there"
    )

    secrets = [
        *SECRETS["CLIENT_KEYS"].split(","),
        SECRETS["PROVIDER_KEY"],
        key,
        WRONG_KEY,
        os.environ["RAY_AUTH_TOKEN"],
    ]
    written = {file: file.read_bytes() for file in files}
    hits = [
        (file, secret)
        for file, content in written.items()
        for secret in secrets
        if secret.encode() in content
    ]
    assert hits == []
    assert [file for file in logs if PROMPT.encode() in written[file]] == [], (
        "prompts are for traces, not for logs"
    )
    assert any(PROMPT.encode() in content for content in written.values()), "and there they are"
    assert not any(secret in texts for secret in secrets)


def ask_badly(url: str, keys: list[str]) -> tuple[set[int], str]:
    """The statuses and all replies, metrics and traces included."""
    statuses, texts = set(), []
    with httpx.Client(base_url=url + "/", timeout=120) as client:
        for turn in range(8):
            for key in [*keys, WRONG_KEY]:
                messages = [{"role": "user", "content": PROMPT}]
                body = {
                    "model": ("r2", SMALL)[turn % 2],
                    "messages": messages,
                    "stream": turn % 4 > 1,
                    "r2": {"trace": True},
                }
                response = client.post(
                    "chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
                )
                statuses.add(response.status_code)
                texts.append(response.text + str(response.headers))
        texts.append(
            client.get(url.replace("/v1", "/metrics"), headers={"authorization": f"Bearer {keys[0]}"}).text
        )
    return statuses, "".join(texts)
