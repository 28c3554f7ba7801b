"""What all commands share: how an error ends them, and output on terminals that know only ASCII."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import typer

from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import INTERRUPTED, plain_errors


def test_r2_error_is_printed_as_one_line_and_ends_with_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended, plain_errors("r2-train"):
        raise ConfigError("no such file: absent.yaml")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "r2-train: no such file: absent.yaml\n"


def test_full_disk_is_told_in_one_line_and_other_errors_without_a_file_are_not_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended, plain_errors():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ended.value.exit_code == 1
    assert "free some space, or name another disk): No space left on device\n" in capsys.readouterr().err
    with pytest.raises(OSError, match="Bad file"), plain_errors():
        raise OSError(errno.EBADF, "Bad file descriptor")


def test_interrupted_command_ends_with_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, plain_errors(interrupted="stopped here"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == INTERRUPTED == 130
    assert capsys.readouterr().err == "r2-serve: stopped here\n"


def test_output_on_an_ascii_terminal_replaces_what_it_cannot_print() -> None:
    code = "from r2_serve.ops.command_line import replace_unprintable_characters as r; r(); print('5 µ$')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "5 ?$\n"), done.stderr
