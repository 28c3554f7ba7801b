"""`r2-train collect -d` trains on a user's own questions, and later commands go on with them."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from r2_serve.config.prompts import read_prompts
from r2_serve.errors import ConfigError
from r2_serve.files import json_line
from r2_serve.lab.domains import words
from r2_serve.lab.runs import packages
from r2_train.cli import app
from r2_train.config import load_config
from r2_train.run import TrainingRun
from r2_train.stages.collect import PLANS, CollectedTask

CONFIG = """
pool: {virtual_model: r2, reference: same-plans}
data: {benchmark: scan, num_train: 6, num_validation: 3}
collect: {num_candidates: 1, executor: words-48k}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [{"question": task.query, "answer": task.gold} for task in words.tasks("train", 40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def called(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_own_questions_are_collected_and_searched(place: Path) -> None:
    run = place / "run"
    code, said = called(
        "collect", "-c", place / "config.yaml", "-d", place / "mine.jsonl", "--grader", "number", "-o", run
    )
    assert code == 0, said
    assert json.loads((run / "collect" / "summary.json").read_text())["num_kept"] >= 5
    code, said = called("search", "-o", run)
    assert code == 0, said
    assert json.loads((run / "search" / "summary.json").read_text())["num_solved"] >= 3


def test_description_needs_no_tasks_where_the_command_names_them(place: Path) -> None:
    (place / "config.yaml").write_text("pool: {virtual_model: r2}")
    code, said = called(
        "collect",
        "-c",
        place / "config.yaml",
        "-d",
        place / "mine.jsonl",
        "--grader",
        "number",
        "-o",
        place / "run",
    )
    assert code == 1
    assert "too few tasks" in said and "missing" not in said


def test_plans_are_collected_where_torch_is_not_installed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosted models need no torch, and `pip install .` brings none."""
    find = importlib.metadata.distribution

    def without_torch(name: str) -> importlib.metadata.Distribution:
        if name in ("torch", "transformers", "trl", "peft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_torch)
    packages.cache_clear()
    run = TrainingRun(load_config(place / "config.yaml"), place / "run", Console(quiet=True))
    made = json.dumps(run._manifest(run.tasks))
    packages.cache_clear()
    assert '"ray"' in made and '"torch"' not in made


def test_collection_that_kept_no_plan_says_so(place: Path) -> None:
    run = TrainingRun(load_config(place / "config.yaml"), place / "run", Console(quiet=True))
    (place / "run" / "collect").mkdir(parents=True)
    row = CollectedTask(task_id="t", query="q", candidates=(), num_invalid=3)
    (place / "run" / "collect" / PLANS).write_text(json_line(row))
    with pytest.raises(ConfigError, match="kept no plan of 1 task: none was valid and right"):
        run.kept_plans()


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--grader", "guess"), "guess"), (("-b", "chess"), "chess")],
    ids=["grader", "benchmark"],
)
def test_wrong_name_is_an_error_without_a_traceback(
    place: Path, option: tuple[str, str], message: str
) -> None:
    code, said = called(
        "collect", "-c", place / "config.yaml", "-d", place / "mine.jsonl", *option, "-o", place / "run"
    )
    assert code != 0 and message in said and "Traceback" not in said


def test_command_without_a_config_names_the_file_that_is_missing(tmp_path: Path) -> None:
    code, said = called("search", "-o", tmp_path / "nothing")
    assert code != 0 and "config.yaml" in said


def test_examples_of_prompts_are_training_tasks_with_their_plans_and_models(place: Path) -> None:
    run, file = place / "run", place / "prompts.yaml"
    called("collect", "-c", place / "config.yaml", "-d", place / "mine.jsonl", "-g", "number", "-o", run)
    called("search", "-o", run)
    code, said = called("prompts", file, "--examples", 2, "-o", run)
    assert code == 0, said
    examples = read_prompts(str(file)).examples
    tasks = TrainingRun(load_config(run / "config.yaml"), run, Console(quiet=True)).tasks
    assert len(examples) == 2 and {example.query for example in examples} <= {t.query for t in tasks.train}
    assert all(len(example.models or ()) in (0, len(example.plan.subtasks)) for example in examples)
    code, said = called("prompts", file, "-o", run)
    assert code != 0 and "exists" in said, "a version is never overwritten"
