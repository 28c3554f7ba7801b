"""Publishing on Kubernetes, with a scripted kubectl, operator and dashboard."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.pod_config import on_pods
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from r2_serve.ops.publishing import rayservice
from r2_serve.ops.publishing.rayservice import RayService
from tests import ROOT
from tests.ops.test_publishing import FakeServe, loaded_in, routed_to, run
from tests.support.config_of import config_of
from tests.support.scripted_kubectl import TOKEN
from tests.support.scripted_pool import scripted_yaml
from tests.support.small_adapters import adapter

TEXT = scripted_yaml(server={"keys_file": "/etc/r2/keys.yaml"})


@dataclass
class Stand:
    """The folder of the scripted kubectl, the user's config file, and what the dashboard got."""

    folder: Path
    path: Path
    serve: FakeServe
    tokens: set[str | None]

    @property
    def carried(self) -> str:
        """The Serve config in the custom resource."""
        resource = json.loads((self.folder / "rayservice.json").read_text())
        return str(resource["spec"]["serveConfigV2"])

    def publish(self, directory: Path, *words: str) -> tuple[int, str]:
        asked = ["publish", str(directory), "--config", str(self.path), "--rayservice", "prod/r2", *words]
        code, output = run(asked)
        return code, " ".join(output.split())


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    folder, binaries, path = tmp_path / "kubernetes", tmp_path / "bin", tmp_path / "serve_config.yaml"
    folder.mkdir()
    binaries.mkdir()
    path.write_text(TEXT)
    (made, *_) = yaml.safe_load_all(manifest_text(config_of(TEXT), Options()))
    made["status"] = {"activeServiceStatus": {"rayClusterName": "r2-cluster-1"}}
    (folder / "rayservice.json").write_text(json.dumps(made))
    kubectl = binaries / "kubectl"
    program = "tests.support.scripted_kubectl"
    kubectl.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {program} {folder} "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries), prepend=os.pathsep)
    monkeypatch.setattr(rayservice, "POLL_S", 0.05)
    serve, tokens = FakeServe(made["spec"]["serveConfigV2"]), set()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.add(self.headers["Authorization"])
            self.answer(httpx.Request("GET", "http://dashboard"))

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(httpx.Request("PUT", "http://dashboard", content=body))

        def answer(self, request: httpx.Request) -> None:
            found = serve(request)
            self.send_response(found.status_code)
            self.end_headers()
            self.wfile.write(found.content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (folder / "dashboard").write_text(f"127.0.0.1:{server.server_port}")
        try:
            yield Stand(folder, path, serve, tokens)
        finally:
            server.shutdown()
            thread.join()


def test_operator_that_starts_again_does_not_undo_what_was_published(stand: Stand, tmp_path: Path) -> None:
    code, output = stand.publish(adapter(tmp_path, "d1"))
    assert code == 0, output
    loading, named, used = stand.serve.deployed
    assert loading["applications"][-1]["import_path"] == "r2_serve.app:build_adapter_load"
    assert loaded_in(json.dumps(named), "m-planner") == ["d1"] and routed_to(json.dumps(used)) == "d1"
    sent_again = yaml.safe_load(stand.carried)
    assert sent_again == used == on_pods(yaml.safe_load(stand.path.read_text()))
    router = sent_again["applications"][-1]["deployments"][0]
    assert router["num_replicas"] == 2, "the change keeps what the manifest added"
    assert routed_to(stand.path.read_text()) == "d1", "and the file says the same"


def test_kubectl_gets_the_namespace_and_ray_the_token_of_its_secret(stand: Stand, tmp_path: Path) -> None:
    stand.publish(adapter(tmp_path, "d1"))
    calls = (stand.folder / "calls").read_text().splitlines()
    assert all(call.startswith("--namespace prod ") for call in calls)
    assert [call.split()[2] for call in calls] == ["get", "get", "port-forward", *3 * ["patch"]]
    assert stand.tokens == {f"Bearer {TOKEN}"}


def test_operator_that_does_not_follow_is_named_and_nothing_is_published(
    stand: Stand, tmp_path: Path
) -> None:
    before = stand.carried
    (stand.folder / "operator-is-away").touch()
    code, output = stand.publish(adapter(tmp_path, "d1"), "--timeout-s", "1")
    assert code == 1 and "KubeRay did not pass the config on within 1 s" in output
    assert yaml.safe_load(stand.carried) == yaml.safe_load(before)
    assert (stand.path.read_text(), stand.serve.deployed) == (TEXT, [])


def test_reason_of_kubectl_is_shown_and_its_absence_too(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand.folder / "refuses").write_text('Error from server (NotFound): rayservices "r2" not found')
    code, output = stand.publish(adapter(tmp_path, "d1"))
    assert code == 1 and "`kubectl get rayservice r2` failed: Error from server (NotFound)" in output
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "kubectl is not installed" in stand.publish(tmp_path / "d1")[1]


def test_name_that_is_no_name_is_refused() -> None:
    assert RayService.parse("r2") == RayService("r2") and RayService.parse("a/r2") == RayService("r2", "a")
    for text in ("", "a/b/c", "--all", "R2"):
        with pytest.raises(ConfigError, match="expected NAME or NAMESPACE/NAME"):
            RayService.parse(text)
