"""The `llm` command, as its documentation adds OpenAI-compatible models: extra-openai-models.yaml."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import ANSWER, BASE_URL, KEY, check, not_offered

home = Path(tempfile.mkdtemp())
(home / "extra-openai-models.yaml").write_text(
    "".join(
        f"- model_id: my-{name}\n  model_name: {name}\n  api_base: {BASE_URL}\n  api_key_name: r2\n"
        for name in ("r2", "nope")
    )
)
(home / "keys.json").write_text(f'{{"r2": "{KEY}"}}')


def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "LLM_USER_PATH": str(home)}, timeout=120
    )


def chat() -> None:
    assert llm("-m", "my-r2", "--no-stream", "Which is it?").stdout.strip() == ANSWER
    assert (
        llm(
            "-m", "my-r2", "-s", "Be brief.", "-o", "temperature", "0", "--no-stream", "Which is it?"
        ).stdout.strip()
        == ANSWER
    )


def stream() -> None:
    assert llm("-m", "my-r2", "Which is it?").stdout.strip() == ANSWER


def usage() -> None:
    assert "output" in llm("-m", "my-r2", "-u", "Which is it?").stderr


def error() -> None:
    done = llm("-m", "my-nope", "Which is it?")
    assert done.returncode != 0 and "nope" in done.stderr
    done = llm("-m", "my-r2", "--key", "wrong", "Which is it?")
    assert done.returncode != 0 and "401" in done.stderr


for claim in (chat, stream, usage, error):
    check(claim.__name__, claim)
not_offered("models")  # it lists its own file
