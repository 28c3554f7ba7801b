"""The commands of `r2-serve` that talk to people: what they print is what users and models wrote."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from r2_serve.calls.pool import in_process_engines
from r2_serve.cli import app
from r2_serve.config import ModelConfig, RouterConfig, RoutingConfig, ServerConfig
from r2_serve.errors import ConfigError
from r2_serve.http.api import create_app
from r2_serve.ops.local import cluster
from r2_serve.router.router import in_process
from r2_train.cli import app as train_app
from tests import ROOT
from tests.support.load_endpoint import serving

COMMAND = re.compile(r"(?<![\w-])(r2-serve|r2-train) (?!as\b)([a-z][a-z0-9-]*)(?: ([a-z][a-z0-9-]*))?")
ANSWER = (
    "list[int] is [bold]not[/bold] [/a-z]; a line of more than eighty characters "
    + "stays as it is, " * 9
    + "whole."
)
"""Rich would swallow the first two brackets, fail on the third and break the line."""


def test_empty_question_is_not_sent() -> None:
    done = CliRunner().invoke(app, ["ask", "--url", "http://127.0.0.1:1", " "])
    assert done.exit_code == 2
    assert "the question is empty" in done.output


async def asked(answer: str) -> str:
    """The output of `r2-serve ask` about a model that always replies `answer`."""
    model = ModelConfig.model_validate(
        {
            "name": "small",
            "usd_per_mtok_in": 1,
            "usd_per_mtok_out": 1,
            "engine": {"kind": "scripted", "replies": [answer]},
        }
    )
    stage = {"model": "small"}
    virtual = {"r2": {"pool": ["small"], "decomposer": stage, "allocator": stage}}
    routing = RoutingConfig.model_validate({"virtual_models": virtual})
    router = in_process(RouterConfig(models=(model,)), routing, in_process_engines({}))
    async with serving(create_app(router, ServerConfig(), environment={})) as url:
        arguments = ["ask", "--url", url, "what is [/x]?"]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_ask_prints_the_answer_as_the_model_wrote_it() -> None:
    printed = asyncio.run(asked(ANSWER))
    assert printed.startswith(f"{ANSWER}\n"), printed
    assert "small" in printed, "the table of steps names the model"


def test_every_console_prints_text_without_markup() -> None:
    """Rich reads markup unless the console has it turned off."""
    with_markup = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sources()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Console"
        if not any(keyword.arg == "markup" for keyword in call.keywords)
    ]
    assert with_markup == []


def sources() -> list[Path]:
    return [path for package in ("r2_serve", "r2_train") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize(("options", "num_gpus"), [([], None), (["--gpus", "2"], 2)])
def test_up_leaves_the_count_of_gpus_to_ray_unless_it_is_given(
    options: list[str], num_gpus: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def refuse(*_: object, num_gpus: int | None, **__: object) -> None:
        given.append(num_gpus)
        raise ConfigError("this test starts no Ray")

    monkeypatch.setattr(cluster, "local_cluster", refuse)
    monkeypatch.setattr(cluster, "prepare_environment", lambda **_: None)
    assert CliRunner().invoke(app, ["up", *options]).exit_code == 1
    assert given == [num_gpus]


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_port_that_no_server_can_have_is_a_usage_error(port: str) -> None:
    done = CliRunner().invoke(app, ["up", "--port", port])
    assert done.exit_code == 2 and "--port" in done.stderr


def test_every_command_that_a_message_or_a_page_names_exists() -> None:
    programs = {"r2-serve": get_command(app), "r2-train": get_command(train_app)}
    wrong = []
    for path, text in _texts():
        for program, name, following in COMMAND.findall(text):
            command = getattr(programs[program], "commands", {}).get(name)
            inner = getattr(command, "commands", None)
            if command is None or (inner and following and following not in inner):
                wrong.append(f"{path.relative_to(ROOT)}: {program} {name} {following}")
    assert not wrong


def _texts() -> Iterator[tuple[Path, str]]:
    """The pages, and the texts in the code of both packages."""
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        yield path, path.read_text()
    for path in (*(ROOT / "r2_serve").rglob("*.py"), *(ROOT / "r2_train").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        constants = (node.value for node in nodes if isinstance(node, ast.Constant))
        yield path, "\n".join(value for value in constants if isinstance(value, str))
