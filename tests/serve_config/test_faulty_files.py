"""`r2-serve validate` of files that hold no config: one line, exit status 2, and no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
"""Twelve lines of which aliases make 9 to the power of 12 values."""
FILES: dict[str, tuple[bytes, str]] = {
    "utf-16": ("applications: []\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "latin-1": ("a: café\n".encode("latin-1"), "not text in UTF-8 (byte 6)"),
    "binary": (bytes(range(256)), "not text in UTF-8"),
    "escape character": (
        b"a: 1\nb: \x1b[31m\n",
        "line 2: not valid YAML: the character '\\x1b' is not allowed",
    ),
    "nul": (b"\0" * 100, "the character '\\x00' is not allowed"),
    "3,000 nested lists": (b"a: " + b"[" * 3000 + b"]" * 3000, "nested deeper than 64 levels"),
    "100 nested lists": (b"a: " + b"[" * 100 + b"]" * 100, "nested deeper than 64 levels"),
    "700 indented levels": ("".join(" " * i + "a:\n" for i in range(700)).encode(), "nested deeper than 64"),
    "alias bomb": (BOMB.encode(), "aliases (*name) make more than 100000 values"),
    "self-reference": (b"a: &a [*a]\n", "a value contains itself"),
    "2 MB": (b"a: 1\n" * 400_000, "2000000 bytes, and a config has at most 1000000"),
    "nothing": (b"", "it holds nothing"),
    "comments alone": (b"# a\n# b\n", "it holds nothing"),
    "a list": (b"- a\n", "it holds a list"),
    "a number": (b"42\n", "it holds one value"),
    "tabs": (b"a:\n\tb: 1\n", "line 2: not valid YAML: found character '\\t'"),
    "an impossible date": (b"a: 2026-02-31\n", "day is out of range"),
    "a number of 5,000 digits": (b"a: " + b"9" * 5000, "not valid YAML"),
    "a wrong tag": (b"a: !!bool maybe\n", "not valid YAML"),
    "a list as a key": (b"? [a]\n: b\n", "unhashable key"),
    "two documents": (b"a: 1\n---\nb: 1\n", "another document"),
    "an open quote": (b"a: 'x\n", "unexpected end of stream"),
}
"""Content of a file by what is wrong with it, and a part of the message."""


def refusal(path: Path) -> str:
    """The only line that `validate` prints; it must end with status 2."""
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert (done.exit_code, done.stdout) == (2, ""), (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("r2-serve: ") and str(path) in line
    return line


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_config_is_refused_in_one_line_with_status_2(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / "c.yaml").write_bytes(content)
    assert message in refusal(tmp_path / "c.yaml")


def test_missing_file_directory_pipe_and_device_are_refused_without_waiting(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.yaml").endswith("No such file or directory")
    assert "it is a directory; name a YAML file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a regular file" in refusal(tmp_path / "pipe")
    assert "it is not a regular file" in refusal(Path("/dev/zero"))
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refusal(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    (tmp_path / "c.yaml").chmod(0)
    assert refusal(tmp_path / "c.yaml").endswith("Permission denied")
