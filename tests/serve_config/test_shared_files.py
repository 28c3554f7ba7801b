"""A SQLite file on a directory that machines share is a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2_serve import files
from r2_serve.serve_config.document import Problem
from tests.serve_config.test_serve_config import edited, read


def with_server(fields: str, router: str = "name: Router") -> list[Problem]:
    """What is wrong where `server` has these fields."""
    config = edited("max_running: 8", f"max_running: 8\n      {fields}")
    return read(config.replace("name: Router", router))[1]


@pytest.mark.parametrize("file", ["spend_file: {}", "responses: {{file: {}}}", "feedback: {{file: {}}}"])
def test_sqlite_file_on_a_network_file_system_is_a_warning(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r2.sqlite"
    assert with_server(file.format(path)) == []
    monkeypatch.setattr(files, "MOUNTS", tmp_path / "mounts")
    files.MOUNTS.write_text(f"nfs.example:/r2 {tmp_path} nfs4 rw 0 0\n")
    (problem,) = with_server(file.format(path))
    assert problem.severity == "warning" and "network file system (nfs4)" in problem.message


SEVERAL = "name: Router\n    num_replicas: 2"


@pytest.mark.parametrize(
    ("fields", "router", "is_shared", "part"),
    [
        ("", "name: Router", False, None),
        ("", SEVERAL, False, "If routers on several machines share"),
        ("", "name: Router", True, "network file system (nfs4)"),
        ("\n      feedback: {file: /var/lib/r2/feedback.sqlite}", SEVERAL, True, None),
    ],
)
def test_scores_that_trace_dir_puts_on_a_shared_directory_are_a_warning(
    fields: str,
    router: str,
    is_shared: bool,
    part: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_shared:
        monkeypatch.setattr(files, "MOUNTS", tmp_path / "mounts")
        files.MOUNTS.write_text(f"nfs.example:/r2 {tmp_path} nfs4 rw 0 0\n")
    problems = with_server(f"trace_dir: {tmp_path}/traces{fields}", router)
    assert [problem.severity for problem in problems] == ["warning"] * (part is not None)
    for problem in problems:
        assert str(part) in problem.message and "feedback: {file: PATH}" in problem.message
