"""The configuration of docs/tutorial.md is valid as it stands there, without a warning."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.serve_config import check
from tests import ROOT

PAGE = (ROOT / "docs/tutorial.md").read_text()
KEYS = {"OPENAI_API_KEY": "key-of-one", "DEEPSEEK_API_KEY": "key-of-another"}


def test_config_of_the_tutorial_has_neither_errors_nor_warnings(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "r2.yaml"
    path.write_text(config)
    assert check(path, environ=KEYS) == []


def test_config_of_the_tutorial_is_what_its_command_writes(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (command,) = re.findall(r"^r2-serve (init .*)$", PAGE, re.MULTILINE)
    path = tmp_path / "r2.yaml"
    arguments = command.split()
    done = CliRunner().invoke(app, [arguments[0], str(path), *arguments[1:]], env=KEYS)
    assert done.exit_code == 0, done.output
    written = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert written == config.splitlines()
