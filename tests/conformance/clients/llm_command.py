"""The `llm` command, as its documentation adds OpenAI-compatible models: extra-openai-models.yaml."""

import os
import subprocess
import sys
from pathlib import Path

from cells import ANSWER, BASE_URL, KEY, TARGETS, feature, run, same

home = Path.home()
entry = "- model_id: my-{name}\n  model_name: {name}\n  api_base: {base}\n  api_key_name: r2\n"
models = (*TARGETS, "nope")
text = "".join(entry.format(name=name, base=BASE_URL) for name in models)
(home / "extra-openai-models.yaml").write_text(text)
(home / "keys.json").write_text(f'{{"r2": "{KEY}"}}')


def llm(model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("llm")), "-m", f"my-{model}", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@feature
def plain(model: str, note: str) -> None:
    same(llm(model, "--no-stream", "-s", "Be brief.", "-o", "temperature", "0", note).stdout.strip(), ANSWER)


@feature
def streamed(model: str, note: str) -> None:
    same(llm(model, note).stdout.strip(), ANSWER)


@feature
def usage(model: str, note: str) -> None:
    assert "output" in llm(model, "-u", note).stderr


@feature
def errors(model: str, note: str) -> None:
    for done, expected in ((llm("nope", note), "nope"), (llm(model, "--key", "wrong", note), "401")):
        assert done.returncode != 0 and expected in done.stderr, done


run()
