"""Weights are fetched before an engine starts; failures that pass are tried again, refusals are not."""

from __future__ import annotations

from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.config import ScriptedEngineConfig, VllmEngineConfig
from r2_serve.engines.fetching import WAITS_S, Checkpoint, checkpoint_of, fetch
from r2_serve.errors import EngineUnavailable
from tests.serve_config.test_serve_config import REFERENCE

REFUSED = RepositoryNotFoundError(
    "no", response=httpx.Response(404, request=httpx.Request("GET", "https://a.b"))
)


class Hub:
    """The hub's client, which fails with `failures` in turn before it answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[str] = []

    def snapshot_download(self, name: str, **_: object) -> str:
        self.asked.append(name)
        if self.failures:
            raise self.failures.pop(0)
        return f"/cache/{name}"


def hub_of(monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> Hub:
    hub = Hub(*failures)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    return hub


def test_lost_connections_are_tried_again_with_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, httpx.ConnectError("lost"), httpx.ReadTimeout("slow"))
    waits: list[float] = []
    assert fetch(Checkpoint("a/b"), waits.append) == "/cache/a/b"
    assert waits == list(WAITS_S[:2])


def test_hub_that_stays_away_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_of(monkeypatch, *[httpx.ConnectError("lost")] * 9)
    with pytest.raises(EngineUnavailable, match=r"'a/b' was not fetched: ConnectError: lost"):
        fetch(Checkpoint("a/b"), lambda _: None)
    assert len(hub.asked) == len(WAITS_S) + 1


def test_refusal_of_the_hub_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_of(monkeypatch, REFUSED)
    with pytest.raises(EngineUnavailable, match="answered 404; is the name right, and does HF_TOKEN"):
        fetch(Checkpoint("a/b"), lambda _: None)
    assert len(hub.asked) == 1


def test_only_models_of_the_hub_are_fetched(tmp_path: Path) -> None:
    def of(model: str, **kwargs: object) -> Checkpoint | None:
        return checkpoint_of(VllmEngineConfig(kind="vllm", model=model, engine_kwargs=kwargs))

    assert of("a/b", revision="v1", download_dir="/w") == Checkpoint("a/b", "v1", "/w")
    assert of(str(tmp_path)) is of("embedded:scan-1k") is of("/not/there") is None
    assert checkpoint_of(ScriptedEngineConfig(kind="scripted")) is None


def test_prefetch_fetches_each_local_model_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_of(monkeypatch)
    done = CliRunner().invoke(app, ["prefetch", str(REFERENCE)])
    assert done.exit_code == 0, done.output
    assert "Qwen/Qwen2.5-0.5B-Instruct" in hub.asked and len(hub.asked) == len(set(hub.asked)) == 4
    assert "Qwen/Qwen2.5-0.5B-Instruct: /cache/Qwen/Qwen2.5-0.5B-Instruct" in done.stdout
