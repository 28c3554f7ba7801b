"""`r2-serve eval` as it is typed: files in, a run directory and a report out; models are scripted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from r2_serve.cli import app
from tests.support.official_rows import CHAMP, CSQA, MATH, MUSIQUE, P3
from tests.support.scripted_pool import scripted_yaml

FILES: dict[str, tuple[str, str, str]] = {
    # benchmark: file, its content, an answer that is correct
    "math": ("rows.jsonl", json.dumps(MATH), "It is \\boxed{2}."),
    "csqa": ("dev.jsonl", json.dumps(CSQA), "(B)"),
    "scan": ("tasks.txt", "IN: jump left OUT: I_TURN_LEFT I_JUMP", "I_TURN_LEFT I_JUMP"),
    "champ": ("champ.json", json.dumps([CHAMP]), "12^2"),
    "musique": ("dev.jsonl", json.dumps(MUSIQUE), "Ann"),
    "p3": ("puzzles.json", json.dumps([P3]), "def sol():\n    return 1"),
}


def r2(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], input=stdin)


def config_with(directory: Path, answer: str) -> Path:
    path = directory / "serve_config.yaml"
    path.write_text(scripted_yaml(replies={"large": [answer]}))
    return path


def run_of(directory: Path, benchmark: str, *more: object) -> Result:
    name, content, answer = FILES[benchmark]
    (directory / name).write_text(content + "\n")
    files = (
        "--data",
        directory / name,
        "--config",
        config_with(directory, answer),
        "--out",
        directory / "run",
    )
    return r2("run", "--benchmark", benchmark, "--policy", "single:large", "--split", "all", *files, *more)


@pytest.mark.parametrize(
    "benchmark",
    [*sorted(set(FILES) - {"p3"}), pytest.param("p3", marks=[pytest.mark.sandbox, pytest.mark.smoke])],
)
def test_every_benchmark_runs_from_its_official_file_to_a_report(tmp_path: Path, benchmark: str) -> None:
    ran = run_of(tmp_path, benchmark, "--policy", "r2")
    assert (ran.exit_code, "done: 2 rows, 0 failed" in ran.output) == (0, True), ran.output
    reported = r2("report", tmp_path / "run")
    assert reported.exit_code == 0, reported.output
    (report,) = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {policy["policy"]: policy["accuracy"] for policy in report["policies"]} == {
        "single:large": 1.0,
        "r2": 1.0,
    }
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") == 2


def test_changed_run_is_refused_and_set_aside_on_request(tmp_path: Path) -> None:
    assert run_of(tmp_path, "scan").exit_code == 0
    rows = (tmp_path / "run" / "rows.jsonl").read_bytes()
    refused = run_of(tmp_path, "scan", "--seed", "1")
    assert refused.exit_code == 1
    assert "holds another run" in refused.output
    assert "seed: was 0, now 1" in refused.output
    assert run_of(tmp_path, "scan", "--seed", "1", "--set-aside").exit_code == 0
    assert (tmp_path / "run.1" / "rows.jsonl").read_bytes() == rows
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 1
    again = run_of(tmp_path, "scan", "--seed", "1", "--set-aside")
    assert (again.exit_code, (tmp_path / "run.2").exists()) == (0, False)


def test_model_that_cannot_be_loaded_ends_the_run_before_the_first_task(tmp_path: Path) -> None:
    config = config_with(tmp_path, "x")
    config.write_text(
        config.read_text().replace("kind: scripted\n", "kind: transformers\n      path: /nowhere\n", 1)
    )
    ran = r2(
        "run", "-b", "scan", "-d", "length", "-p", "r2", "--limit", "3", "-c", config, "-o", tmp_path / "run"
    )
    assert ran.exit_code == 1
    assert not (tmp_path / "run" / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "-b", "gsm9k", "-d", "x", "-p", "r2", "-o", "x"),
            "'gsm9k' is not one of math, gsm8k,",
        ),
        (("run", "-b", "scan", "-d", "nowhere", "-p", "r2", "-o", "x"), "nowhere: no such file or directory"),
        (("run", "-b", "scan", "-d", "length", "-p", "r3", "-o", "x"), "unknown policy 'r3'"),
        (
            ("run", "-b", "scan", "-d", "length", "-p", "r2", "-o", "x", "--engine", "spark"),
            "'spark' is not one of 'asyncio', 'ray-data'",
        ),
        (
            ("run", "-b", "scan", "-d", "length", "-p", "r2", "-o", "x", "--engine", "ray-data"),
            "give its --url",
        ),
        (("report", "nowhere"), "nowhere is not a run"),
        (("grade", "gsm9k"), "'gsm9k' is not one of math, gsm8k,"),
        (
            ("export", "-b", "champ", "-d", "length", "-f", "csv", "-o", "x"),
            "'csv' is not one of 'lm-eval', 'inspect'",
        ),
    ],
)
def test_wrong_options_end_with_a_message_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = r2(*arguments)
    assert result.exit_code in (1, 2)
    assert message in re.sub(r"[\s│]+", " ", result.output)
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_grade_reads_rows_and_writes_verdicts() -> None:
    lines: list[Any] = [{"id": "a", "gold": "B", "answer": "(B)"}, {"id": "b", "gold": "A", "answer": ""}]
    lines += [{"id": "a", "gold": "A", "answer": "(B)"}, {"id": "c"}]
    result = r2("grade", "csqa", stdin="\n".join(map(json.dumps, lines)))
    verdicts = [json.loads(line) for line in result.stdout.splitlines()]
    found = [(verdict["id"], verdict["status"]) for verdict in verdicts]
    assert found == [("a", "correct"), ("b", "unparsed"), ("a", "wrong"), ("c", "error")]
    assert set(verdicts[0]) == {"id", "correct", "status", "detail", "scores"}
    assert "1 correct" in result.stderr


@pytest.mark.parametrize(
    ("benchmark", "name", "content"),
    [
        ("csqa", "utf-16.jsonl", FILES["csqa"][1].encode("utf-16")),
        ("csqa", "binary.jsonl", b"\xff\xfe\x00"),
        ("csqa", "broken.jsonl", b'{"id": '),
        ("csqa", "nested.jsonl", b"[" * 100_000),
        ("champ", "number.json", b"[" + b"9" * 5000 + b"]"),
        ("musique", "half-a-pair.jsonl", FILES["musique"][1].replace("Ann", "\\ud83d").encode()),
        ("scan", "empty.txt", b""),
    ],
)
def test_data_that_cannot_be_read_leaves_the_run_directory_unclaimed(
    tmp_path: Path, benchmark: str, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    files = ("-d", tmp_path / name, "-c", config_with(tmp_path, "x"), "-o", tmp_path / "run")
    result = r2("run", "-b", benchmark, "-p", "r2", *files)
    assert result.exit_code == 1 and name in result.output, result.output
    assert result.output.startswith("r2-serve: ") and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_answers_with_line_separators_reach_the_report(tmp_path: Path) -> None:
    name, content, _ = FILES["csqa"]
    (tmp_path / name).write_text("\ufeff" + content)
    config = config_with(tmp_path, "(B)\u2028 it is \u0085 so")
    files = ("-d", tmp_path / name, "-c", config, "-o", tmp_path / "run")
    ran = r2("run", "-b", "csqa", "-p", "single:large", "--split", "all", *files)
    assert "done: 1 row, 0 failed" in ran.output, ran.output
    assert r2("report", tmp_path / "run").exit_code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().split("\n") if line]
    assert row["outcome"]["answer"] == "(B)\u2028 it is \u0085 so" and row["status"] == "correct"


def test_report_is_printed_on_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    assert run_of(tmp_path, "scan").exit_code == 0
    command = [sys.executable, "-m", "r2_serve.cli", "eval", "report", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"single:large" in done.stdout and b"scan ? " in done.stdout


def test_report_that_cannot_be_written_ends_with_one_line(tmp_path: Path) -> None:
    assert run_of(tmp_path, "scan").exit_code == 0
    result = r2("report", tmp_path / "run", "--html", tmp_path / "none" / "report.html")
    assert result.exit_code == 1
    assert "No such file or directory" in result.output and "Traceback" not in result.output
