"""No secret is written: logs, error replies, traces and `repr` have none."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from r2_serve.calls.budget import Budget
from r2_serve.calls.ledger import Ledger
from r2_serve.cluster.stages import report_of
from r2_serve.config import HostedEngineConfig, RouterConfig, ServerConfig
from r2_serve.engines.hosted import HostedEngine
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineUnavailable
from r2_serve.http.api import create_app
from r2_serve.http.keys import KeyRing, new_key
from r2_serve.http.redaction import MARK, Redactor, redact_logs
from r2_serve.router.router import in_process
from r2_serve.traces import TraceWriter, read_traces
from r2_serve.types import Trace
from tests.http.test_api import error_of
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.scripted_backend import ScriptedBackend, chat_body, make_client

CANARY = "canary-in-a-coal-mine"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The text that a log handler of this process writes after `redact_logs`."""
    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    before, written = logging.getLogRecordFactory(), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    redact_logs(Redactor([CANARY]))
    yield written
    logging.getLogger().removeHandler(handler)
    logging.setLogRecordFactory(before)


class Talkative(Exception):
    def __str__(self) -> str:
        return f"refused with {CANARY}"


def test_log_record_of_any_logger_is_redacted(log: io.StringIO) -> None:
    for name in ("r2_serve.x", "httpx", "openai", "ray.serve"):
        logger = logging.getLogger(f"{name}.of-this-test")
        logger.error("key %s", CANARY)
        logger.error("key " + CANARY)
        logger.error("key %(key)s", {"key": {"nested": [CANARY]}})
        logger.error(Talkative())
        try:
            raise ValueError(CANARY) from Talkative()
        except ValueError:
            logger.exception("failed")
    assert CANARY not in log.getvalue()
    assert log.getvalue().count(MARK) == 4 * (4 + 2), "four messages, and a traceback of two errors"


def test_logs_without_a_secret_are_unchanged(log: io.StringIO) -> None:
    logging.getLogger("a").error("%d of %s", 1, "two")
    logging.getLogger("a").error("100%")
    assert log.getvalue() == "a 1 of two\na 100%\n"


def test_redacting_again_replaces_the_known_secrets(log: io.StringIO) -> None:
    redact_logs(Redactor(["another-secret"]))
    redact_logs(Redactor(["another-secret", CANARY]))
    logging.getLogger("a").error("%s another-secret", CANARY)
    assert log.getvalue() == f"a {MARK} {MARK}\n"


def test_secrets_are_known_by_the_name_of_their_variable() -> None:
    environment = {
        "OPENAI_API_KEY": "sk-aaaaaaaa",
        "RAY_AUTH_TOKEN": "tttttttttt",
        "CLIENTS": "first-key-1, second-key",
        "HOME": "/home/alice",
    }
    redact = Redactor.of(environment, names=["CLIENTS", "UNSET", None])
    text = "sk-aaaaaaaa tttttttttt first-key-1 second-key /home/alice"
    assert redact(text) == f"{MARK} {MARK} {MARK} {MARK} /home/alice"
    assert redact("sk-aaaaaaaabbb") == f"{MARK}bbb"
    assert Redactor.of({"A_KEY": "1", "B_TOKEN": ""})("1 + 1") == "1 + 1"


def test_longer_of_two_overlapping_secrets_is_replaced_whole() -> None:
    assert Redactor(["secret-1", "secret-1-and-more"])("secret-1-and-more secret-1") == f"{MARK} {MARK}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [(), ("Hello",)])
async def test_error_reply_holds_no_secret(stream: bool, pieces: tuple[str, ...]) -> None:
    """The secret is the client's own key; `scripted_backend` sets the application's environment."""
    backend = ScriptedBackend(
        error=EngineUnavailable("the provider wrote: key-one-and-only is wrong"), pieces=pieces
    )
    environment = {"CLIENT_KEYS": "key-one-and-only"}
    async with make_client(backend, environment=environment) as client:
        response = await client.post("/v1/chat/completions", json=chat_body(stream=stream))
    assert "key-one-and-only" not in response.text and MARK in response.text
    if response.status_code != 200:
        assert error_of(response)["message"] == f"the provider wrote: {MARK} is wrong"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_fault", ["decomposer", "allocator"])
async def test_reply_details_hold_no_secret_and_the_answer_is_unchanged(stream: bool, at_fault: str) -> None:
    answer = f"my favourite word is {CANARY}"
    replies: dict[str, list[Any]] = {
        "decomposer": [plan_json("one", "two #1")],
        "allocator": [allocation_json("small", "large")],
        at_fault: [EngineUnavailable(f"the provider wrote: {CANARY} is wrong")],
    }
    models = tuple(model(name) for name in ("small", "large", "decomposer", "allocator"))
    router = in_process(
        RouterConfig(models=models),
        routing(),
        lambda config: ScriptedEngine(replies.get(config.name, [answer])),
    )
    app = create_app(router, ServerConfig(), environment={"PROVIDER_KEY": CANARY})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        response = await client.post(
            "/v1/chat/completions", json=chat_body(stream=stream, r2={"trace": True})
        )
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        text, r2 = (
            "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]),
            chunks[-1]["r2"],
        )
    else:
        text, r2 = response.json()["choices"][0]["message"]["content"], response.json()["r2"]
    fallback = {"decomposer": "plan_fallback", "allocator": "allocation_fallback"}[at_fault]
    assert r2[fallback] == r2["trace"][fallback] and f"the provider wrote: {MARK} is wrong" in r2[fallback]
    assert text == r2["trace"]["answer"] == r2["trace"]["results"][-1]["answer"] == answer


def test_secret_that_json_escapes_is_found_in_json() -> None:
    secret = 'quo"ted\\and\tü-secret'
    redact = Redactor([secret])
    for is_ascii in (True, False):
        once = json.dumps({"text": secret}, ensure_ascii=is_ascii)
        twice = json.dumps({"text": once}, ensure_ascii=is_ascii)
        assert json.loads(redact(once)) == {"text": MARK}
        assert json.loads(json.loads(redact(twice))["text"]) == {"text": MARK}
    assert redact(f"{secret}!") == f"{MARK}!"


def test_secret_with_a_quote_is_in_no_trace(tmp_path: Path) -> None:
    secret = 'coal"mine\\canary'
    write = TraceWriter(tmp_path, redact=Redactor([secret]))
    write(
        Trace(
            request_id="r", model="r2", query=secret, error=f"EngineRefused: {json.dumps({'error': secret})}"
        )
    )
    (trace,) = read_traces(tmp_path)
    assert (trace.query, trace.error) == (MARK, f'EngineRefused: {{"error": "{MARK}"}}')


def test_trace_holds_no_secret_and_can_still_be_read(tmp_path: Path) -> None:
    write = TraceWriter(tmp_path, redact=Redactor([CANARY]))
    write(
        Trace(
            request_id="r",
            model="r2",
            query=f"my key is {CANARY}",
            answer=CANARY,
            error=f"EngineRefused: {CANARY}",
        )
    )
    (file,) = tmp_path.glob("*.jsonl")
    assert CANARY not in file.read_text()
    (trace,) = read_traces(tmp_path)
    assert (trace.query, trace.answer) == (f"my key is {MARK}", MARK)


def test_no_repr_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", CANARY)
    hosted = HostedEngineConfig(kind="openai", model="m", api_key_env="PROVIDER_KEY")
    server, key = ServerConfig(api_keys_env="PROVIDER_KEY"), new_key("alice")
    ring = KeyRing.of(server)
    engine = HostedEngine(hosted)
    config = RouterConfig(models=(model("a").model_copy(update={"engine": hosted}),), server=server)
    shown: list[Any] = [
        hosted,
        server,
        config,
        ring,
        ring.find(f"Bearer {CANARY}"),
        key[1],
        engine,
        engine._client,
        Redactor([CANARY]),
    ]
    text = " ".join(f"{thing!r} {thing!s}" for thing in shown)
    assert CANARY not in text and key[0] not in text


def test_command_line_redacts_its_logs() -> None:
    """A user runs the command; its callback comes before any command of the app."""
    code = (
        "import logging, os, r2_serve.cli as cli\n"
        "logging.basicConfig()\n"
        "@cli.app.command()\n"
        "def shout(): logging.error(os.environ['SOME_KEY'])\n"
        "cli.app(['shout'])\n"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "SOME_KEY": CANARY}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert MARK in done.stderr and CANARY not in done.stderr


async def test_fault_in_a_stage_is_logged_by_its_place_without_user_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stage(ledger: Ledger) -> None:
        raise KeyError("what a user wrote")

    report = await report_of(stage, Budget())
    assert isinstance(report.error, EngineUnavailable)
    assert "KeyError at test_redaction.py" in caplog.text and "what a user wrote" not in caplog.text
