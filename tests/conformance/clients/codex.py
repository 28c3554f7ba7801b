"""The codex command line, which speaks Responses and streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent_process import binary, read_both
from agent_process import run as run_agent
from cells import ANSWER, BASE_URL, KEY, REFUSED, fails, feature, impossible, png, run, same

CODEX = binary("@openai/codex-*/vendor/*/bin/codex")
CONFIG = f"""
model_provider = "r2"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.r2]
name = "R2"
base_url = "{BASE_URL}"
env_key = "R2_KEY"
wire_api = "responses"
"""
(Path.home() / ".codex").mkdir(exist_ok=True)
(Path.home() / ".codex/config.toml").write_text(CONFIG)
THINKS = ("-c", "model_reasoning_effort=low")


def ask(model: str, text: str, *options: str, resume: str = "") -> list[dict[str, Any]]:
    """The events of one run. Raises: RuntimeError with its output if it fails."""
    command = [CODEX, "exec", "--skip-git-repo-check", "--json", "-m", model, *options]
    command += ["resume", resume] if resume else []
    status, events, output = run_agent([*command, "-"], text, R2_KEY=KEY)
    if status != 0:
        raise RuntimeError(output)
    return events


def items(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    done = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in done if item["type"] == kind]


def text_of(events: list[dict[str, Any]]) -> str:
    return str(items(events, "agent_message")[-1]["text"])


@feature
def streamed(model: str, note: str) -> None:
    same(text_of(ask(model, note)), ANSWER)


@feature
def tools_streamed(model: str, note: str) -> None:
    events = ask(model, read_both(note, "exec_command", "cmd"))
    same(
        {item["aggregated_output"] for item in items(events, "command_execution")},
        {"sun in Oslo", "sun in Rome"},
    )
    text = text_of(events)
    assert "sun in Oslo" in text and "sun in Rome" in text, text


@feature
def image(model: str, note: str) -> None:
    path = Path.home() / "point.png"
    path.write_bytes(png())
    text = text_of(ask(model, note, "-i", str(path)))
    assert text.startswith("I see image/png of"), text


@feature
def structured(model: str, note: str) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    path = Path.home() / "schema.json"
    path.write_text(json.dumps({**schema, "additionalProperties": False}))
    same(json.loads(text_of(ask(model, note, "--output-schema", str(path)))), {"city": "Oslo"})


@feature
def history(model: str, note: str) -> None:
    first = ask(model, note)
    text = text_of(ask(model, "REPEAT", resume=first[0]["thread_id"]))
    assert text.endswith(f"user: {note}\nassistant: {ANSWER}\nuser: REPEAT"), text[-500:]


@feature
def usage(model: str, note: str) -> None:
    events = ask(model, read_both(note, "exec_command", "cmd"))
    came = events[-1]["usage"]
    assert came["input_tokens"] > came["cached_input_tokens"] > 1024, came


@feature
def reasoning(model: str, note: str) -> None:
    events = ask(model, read_both(note, "exec_command", "cmd"), *THINKS)
    assert "sun in Rome" in text_of(events)
    assert items(events, "reasoning"), events
    assert events[-1]["usage"]["reasoning_output_tokens"] > 0, events[-1]


@feature
def errors(model: str, note: str) -> None:
    same(text_of(ask(model, fails(429, 3, note))), ANSWER)
    for asked, text, expected in ((model, fails(400, 9, f"{note}-400"), REFUSED), ("nope", note, "nope")):
        try:
            came: object = ask(asked, text)
        except RuntimeError as e:
            assert expected in str(e), e
        else:
            raise AssertionError(f"no failure, but {came}")


impossible("codex streams every reply", "plain", "tools")
impossible("codex takes the model's name from its config and lists none of other providers", "models")
run()
