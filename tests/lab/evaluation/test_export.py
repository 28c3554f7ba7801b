"""Exported files have the shape that other tools read; their scoring is the grader's own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Benchmark, Task, task_of
from r2_serve.lab.evaluation.benchmarks import load_tasks
from r2_serve.lab.evaluation.export import EXPORTABLE, FORMATS, command, export
from r2_serve.lab.evaluation.session import select_tasks
from tests.support.official_rows import CSQA

TASKS: dict[Benchmark, Task] = {
    "scan": task_of("scan", {"commands": "jump left", "actions": "I_TURN_LEFT I_JUMP"}),
    "csqa": task_of("csqa", CSQA),
    "musique": task_of(
        "musique",
        {"id": "m", "question": "?", "answer": "Eiffel Tower", "answer_aliases": ["tower of Eiffel"]},
    ),
    "words": task_of("words", {"id": "w", "query": "?", "gold": "1200"}),
    "everyday": task_of("everyday", {"id": "e", "query": "?", "gold": "1200, nedrag"}),
}
ANSWERS = (
    "I_TURN_LEFT I_JUMP",
    "turn left, jump",
    "JUMP",
    "(B)",
    "B",
    "the answer is A",
    "library",
    "The Eiffel tower!",
    "tower of eiffel",
    "Rome",
    "1,200",
    "about 1200.",
    "-1200",
    "1200.5",
    "",
    "\\boxed{B}",
    "the answer is 1,200 and nedrag.",
)


def scoring_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_scoring", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("benchmark", EXPORTABLE)
def test_exported_scoring_agrees_with_the_grader(tmp_path: Path, benchmark: Benchmark) -> None:
    task = TASKS[benchmark]
    export([task], "lm-eval", tmp_path)
    scoring, row = scoring_of(tmp_path / "scoring.py"), json.loads((tmp_path / "rows.jsonl").read_text())
    exported = [scoring.process_results(row, [answer])["acc"] for answer in ANSWERS]
    ours = [asyncio.run(Grader().grade(benchmark, task.row, answer)).correct for answer in ANSWERS]
    assert exported == [float(bool(verdict)) for verdict in ours]
    assert set(exported) == {0.0, 1.0}


@pytest.mark.parametrize("file_format", FORMATS)
def test_exported_scoring_needs_no_package(tmp_path: Path, file_format: Any) -> None:
    export([TASKS["scan"]], file_format, tmp_path)
    program = (
        "import sys; sys.path.insert(0, '.'); from scoring import is_right; "
        "print({'r2_serve', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"set()\n")


def test_lm_eval_task_names_its_rows_and_its_scoring(tmp_path: Path) -> None:
    tasks = [TASKS["scan"], task_of("scan", {"commands": "walk", "actions": "I_WALK"})]
    paths = export(tasks, "lm-eval", tmp_path / "a")
    assert {path.name for path in paths} == {"r2_scan.yaml", "rows.jsonl", "scoring.py"}
    text = paths[0].read_text()
    config = yaml.safe_load(text.replace("!function ", ""))
    assert "process_results: !function scoring.process_results" in text
    assert (config["task"], config["output_type"], config["test_split"]) == (
        "r2_scan",
        "generate_until",
        "test",
    )
    assert Path(config["dataset_kwargs"]["data_files"]["test"]) == paths[1].resolve()
    rows = [json.loads(line) for line in paths[1].read_text().splitlines()]
    assert [row["query"] for row in rows] == ["jump left", "walk"]
    assert all(f"{{{{{name}}}}}" in text and name in rows[0] for name in ("query", "gold"))


def test_inspect_task_is_python_in_the_folder_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = export([TASKS["csqa"]], "inspect", tmp_path)
    assert {path.name for path in paths} == {"r2_csqa.py", "rows.jsonl", "scoring.py"}
    with pytest.raises(ModuleNotFoundError, match="inspect_ai"):
        runpy.run_path(str(paths[0]))
    assert "def r2_csqa():" in paths[0].read_text()


def test_exported_rows_are_those_that_a_run_takes(tmp_path: Path) -> None:
    tasks, _ = select_tasks("scan", "length", None, 25)
    export(tasks, "inspect", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["id"], row["query"], row["gold"]) for row in rows] == [
        (task.id, task.query, task.row["actions"]) for task in tasks
    ]
    assert len(rows) == 25 < len(load_tasks("scan", "length"))


def test_benchmark_whose_grader_is_no_function_of_text_is_refused(tmp_path: Path) -> None:
    task = task_of("champ", {"problem_identifier": "P", "problem_text": "?", "problem_answer": "1"})
    with pytest.raises(ConfigError, match="champ cannot be exported, only scan, csqa, musique, words"):
        export([task], "lm-eval", tmp_path)


def test_command_names_model_and_task(tmp_path: Path) -> None:
    assert f"--include_path {tmp_path} --tasks r2_scan" in command("lm-eval", "scan", tmp_path, "r2-scan")
    assert "--model openai-api/r2/r2-scan" in command("inspect", "scan", tmp_path, "r2-scan")
