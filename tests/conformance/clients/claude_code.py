"""Claude Code, which speaks Messages and streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent_process import binary, read_both
from agent_process import run as run_agent
from cells import (
    ANSWER,
    CITIES,
    KEY,
    PNG,
    ROOT,
    SEEN,
    THOUGHT,
    fails,
    feature,
    impossible,
    run,
    same,
    weather,
)

CLAUDE = binary("@anthropic-ai/claude-code-*/claude")
QUIET = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER")
ENVIRONMENT = {
    "ANTHROPIC_BASE_URL": ROOT,
    "ANTHROPIC_API_KEY": KEY,
    "CLAUDE_CONFIG_DIR": str(Path.home() / ".claude"),
    **dict.fromkeys(QUIET, "1"),
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def ask(model: str, text: str, *options: str) -> list[dict[str, Any]]:
    """The events of one run. Raises: RuntimeError with its output if it fails."""
    command = [CLAUDE, "-p", "--model", model, "--output-format", "stream-json", "--verbose"]
    command += ["--allowedTools", "Bash", *options]
    status, events, output = run_agent(command, text, **ENVIRONMENT)
    if status != 0 or events[-1]["is_error"]:
        raise RuntimeError(output)
    return events


def blocks(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    said = [event["message"]["content"] for event in events if event["type"] == "assistant"]
    return [block for content in said for block in content if block["type"] == kind]


def is_told(events: list[dict[str, Any]]) -> bool:
    """Whether the answer has both results, in the order in which the commands ended."""
    text = events[-1]["result"]
    return text.startswith("The tools say: ") and all(weather(city) in text for city in CITIES)


@feature
def streamed(model: str, note: str) -> None:
    same(ask(model, note)[-1]["result"], ANSWER)


@feature
def tools_streamed(model: str, note: str) -> None:
    events = ask(model, read_both(note, "Bash", "command", description="reads a file"))
    assert len(blocks(events, "tool_use")) == 2 and is_told(events), events[-1]


@feature
def image(model: str, note: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [{"type": "image", "source": source}, {"type": "text", "text": note}]
    line = json.dumps({"type": "user", "message": {"role": "user", "content": content}})
    same(ask(model, line, "--input-format", "stream-json")[-1]["result"], SEEN)


@feature
def structured(model: str, note: str) -> None:
    wanted = f'{note}\nCALL StructuredOutput {{"city": "Oslo"}}'
    same(ask(model, wanted, "--json-schema", json.dumps(SCHEMA))[-1]["structured_output"], {"city": "Oslo"})


@feature
def history(model: str, note: str) -> None:
    first = ask(model, note)[-1]
    text = ask(model, "REPEAT", "--resume", first["session_id"])[-1]["result"]
    assert f"{note}\n" in text and f"\nassistant: {ANSWER}\n" in text, text[-1500:]


@feature
def usage(model: str, note: str) -> None:
    came = ask(model, read_both(note, "Bash", "command", description="reads a file"))[-1]["usage"]
    assert came["cache_read_input_tokens"] > 1024, came
    assert came["output_tokens"] > 10, came


@feature
def reasoning(model: str, note: str) -> None:
    events = ask(model, read_both(note, "Bash", "command", description="reads a file"), "--effort", "high")
    assert is_told(events), events[-1]
    same([block["thinking"] for block in blocks(events, "thinking")], [THOUGHT, THOUGHT])


@feature
def errors(model: str, note: str) -> None:
    same(ask(model, fails(429, 3, note))[-1]["result"], ANSWER)
    refused = fails(400, 99, f"{note}-400"), "refused at try"  # it tries again without its newest parameters
    for asked, text, expected in ((model, *refused), ("nope", note, "nope")):
        try:
            came: object = ask(asked, text)[-1]
        except RuntimeError as e:
            assert expected in str(e), e
        else:
            raise AssertionError(f"no failure, but {came}")


impossible("Claude Code streams every reply", "plain", "tools")
impossible("Claude Code lists models in its interactive menu alone", "models")
run()
