"""opencode, as its own server runs it, which streams chat completions."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_process import TIMEOUT_S, binary, lay_out, read_both
from cells import (
    ANSWER,
    BASE_URL,
    DATA_URL,
    KEY,
    REFUSED,
    SEEN,
    TARGETS,
    THOUGHT,
    fails,
    feature,
    impossible,
    run,
    same,
)

OPENCODE = binary("opencode-*/bin/opencode")
QUIET = ("MODELS_FETCH", "AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD", "CLAUDE_CODE", "EXTERNAL_SKILLS")
MODEL = {
    "attachment": True,
    "reasoning": True,
    "modalities": {"input": ["text", "image"], "output": ["text"]},
    "variants": {"thoughtful": {"reasoningEffort": "low"}},
}
CONFIG = {
    "autoupdate": False,
    "share": "disabled",
    "lsp": False,
    "formatter": False,
    "enabled_providers": ["r2"],
    "provider": {
        "r2": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": BASE_URL, "apiKey": KEY},
            "models": dict.fromkeys((*TARGETS, "nope"), MODEL),
        }
    },
    "model": f"r2/{TARGETS[0]}",
    "small_model": f"r2/{TARGETS[0]}",
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def serving() -> Iterator[str]:
    """The address of `opencode serve`."""
    path = Path.home() / "opencode.json"
    path.write_text(json.dumps(CONFIG))
    process = subprocess.Popen(
        [OPENCODE, "serve", "--pure", "--port", "0", "--hostname", "127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=lay_out(),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(Path.home()),
            "OPENCODE_CONFIG": str(path),
            **{f"OPENCODE_DISABLE_{name}": "1" for name in QUIET},
        },
    )
    try:
        assert process.stdout is not None
        yield next(line.split()[-1] for line in process.stdout if "listening on" in line)
    finally:
        process.kill()  # it does not end by SIGTERM
        process.wait()


def post(path: str, body: dict[str, Any]) -> Any:
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    with direct.open(urllib.request.Request(ADDRESS + path, data, headers), timeout=TIMEOUT_S) as reply:
        return json.load(reply)


def new_session() -> str:
    return str(post("/session", {"title": "a title, so that no model is asked for one"})["id"])


def ask(model: str, text: str, *parts: dict[str, Any], session: str = "", **more: Any) -> dict[str, Any]:
    """The last message of the agent's turn."""
    body = {"model": {"providerID": "r2", "modelID": model}, **more}
    body["parts"] = [{"type": "text", "text": text}, *parts]
    came: dict[str, Any] = post(f"/session/{session or new_session()}/message", body)
    print(json.dumps(came)[:3000])
    return came


def text_of(came: dict[str, Any]) -> str:
    return "".join(part["text"] for part in came["parts"] if part["type"] == "text")


@feature
def streamed(model: str, note: str) -> None:
    same(text_of(ask(model, note)), ANSWER)


@feature
def tools_streamed(model: str, note: str) -> None:
    same(
        text_of(ask(model, read_both(note, "bash", "command", description="reads a file"))),
        "The tools say: sun in Oslo; sun in Rome",
    )


@feature
def image(model: str, note: str) -> None:
    picture = {"type": "file", "mime": "image/png", "filename": "point.png", "url": DATA_URL}
    same(text_of(ask(model, note, picture)), SEEN)


@feature
def structured(model: str, note: str) -> None:
    wanted = f'{note}\nCALL StructuredOutput {{"city": "Oslo"}}'
    came = ask(model, wanted, format={"type": "json_schema", "schema": SCHEMA})
    same(came["info"]["structured"], {"city": "Oslo"})


@feature
def history(model: str, note: str) -> None:
    session = new_session()
    ask(model, note, session=session)
    text = text_of(ask(model, "REPEAT", session=session))
    assert text.endswith(f"user: {note}\nassistant: {ANSWER}\nuser: REPEAT"), text[-500:]


@feature
def usage(model: str, note: str) -> None:
    came = ask(model, read_both(note, "bash", "command", description="reads a file"))["info"]["tokens"]
    assert came["cache"]["read"] > 1024 and came["input"] > 0 and came["output"] > 0, came


@feature
def reasoning(model: str, note: str) -> None:
    came = ask(model, read_both(note, "bash", "command", description="reads a file"), variant="thoughtful")
    assert "sun in Rome" in text_of(came)
    same([part["text"] for part in came["parts"] if part["type"] == "reasoning"], [THOUGHT])


@feature
def errors(model: str, note: str) -> None:
    same(text_of(ask(model, fails(429, 3, note))), ANSWER)
    refused = ask(model, fails(400, 9, f"{note}-400"))["info"]["error"]
    assert refused["data"]["statusCode"] == 400 and REFUSED in refused["data"]["message"], refused
    unknown = ask("nope", note)["info"]["error"]
    same(unknown["data"]["statusCode"], 404)


impossible("opencode streams every reply", "plain", "tools")
impossible("opencode lists the models of its own config", "models")
with serving() as ADDRESS:
    run()
