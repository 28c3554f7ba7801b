"""Questions, benchmarks and graders of a user's own, in files that need no code and in functions that do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import BenchmarkError
from r2_serve.lab.evaluation.benchmarks import load_tasks, split_tasks
from r2_train.config import DataConfig
from r2_train.stages.tasks import TaskSplit
from tests import ROOT

CAPITAL = {"question": "What is the capital of France?", "answer": "Paris"}
SUM = {"question": "What is 20 + 22?", "answer": 42}
OWN = '''
def rows(data):
    """Two questions, whose file the command names."""
    yield {"question": f"Is {data} prime?", "answer": "yes", "grader": "own_tasks:starts_alike"}
    yield {"question": "Say ten words or more.", "grader": "own_tasks:is_long", "least": 10}


def starts_alike(row, reply):
    return reply.lower().startswith(row["answer"])


async def is_long(row, reply):
    return len(reply.split()) >= row["least"] if reply else None


def is_broken(row, reply):
    return {"no": "verdict"}


def fails(row, reply):
    raise ValueError("no such luck")
'''


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "own_tasks"


@pytest.mark.parametrize(
    ("grader", "answer", "right", "wrong"),
    [
        ("number", 42, "That makes 42.", "43"),
        ("number", "1,234.5", "The answer is 1234.5", "1234"),
        ("text", "Paris", "paris.", "Lyon"),
        ("math", "\\frac{1}{2}", "\\boxed{0.5}", "\\boxed{2}"),
        ("literal", [1, 2], "[1,2]", "[2, 1]"),
        ("literal", True, "True", "False"),
    ],
)
async def test_row_of_your_own_is_judged_by_the_grader_that_it_names(
    tmp_path: Path, grader: str, answer: object, right: str, wrong: str
) -> None:
    (task,) = load_tasks(
        "qa", write(tmp_path / "mine.jsonl", {"question": "?", "answer": answer, "grader": grader})
    )
    async with Grader() as judge:
        verdicts = [await judge.judge(task, reply) for reply in (right, wrong)]
    assert [verdict.correct for verdict in verdicts] == [True, False]


@pytest.mark.parametrize("answer", ["B", "Paris", "(B)"])
@pytest.mark.parametrize("choices", [["Lyon", "Paris"], {"A": "Lyon", "B": "Paris"}])
async def test_choices_are_shown_with_letters_and_need_no_grader(
    tmp_path: Path, answer: str, choices: object
) -> None:
    row = {**CAPITAL, "answer": answer, "choices": choices}
    (task,) = load_tasks("qa", write(tmp_path / "mine.jsonl", row))
    assert "(A) Lyon\n(B) Paris" in task.query
    async with Grader() as judge:
        assert [(await judge.judge(task, reply)).correct for reply in ("B", "A")] == [True, False]


def test_question_is_asked_as_written_and_its_hash_is_its_id(tmp_path: Path) -> None:
    first, second = load_tasks("qa", write(tmp_path / "a.jsonl", CAPITAL, {**SUM, "id": 7}), "text")
    assert (first.query, second.query, second.id) == (CAPITAL["question"], SUM["question"], "7")
    assert load_tasks("qa", write(tmp_path / "b.jsonl", CAPITAL), "text")[0].id == first.id


def test_option_outdoes_the_graders_of_the_rows(tmp_path: Path) -> None:
    (task,) = load_tasks("qa", write(tmp_path / "mine.jsonl", {**SUM, "grader": "text"}), "number")
    assert task.grader == "number"


@pytest.mark.parametrize(
    ("row", "grader", "message"),
    [
        (CAPITAL, None, "mine.jsonl:1: no grader for this row: give --grader math, number, choice, text"),
        (CAPITAL, "numbr", "mine.jsonl:1: no grader 'numbr'"),
        (CAPITAL, "number", "cannot read the right answer 'Paris': it is no number, or several"),
        ({**CAPITAL, "choices": ["Lyon", "Rome"]}, None, "none of the choices"),
        ({"question": "?"}, "text", "the row has no right answer"),
        ({"answer": "x"}, "text", "question: is missing"),
        ({**CAPITAL, "answer": "3,5"}, "number", "'3,5': it is no number, or several; write one, with a"),
        ({**CAPITAL, "answer": [1, 2]}, "number", "'[1, 2]': it is no number, or several"),
        ({**CAPITAL, "choices": "a,b"}, "text", "choices: got no list, expected a list of at most 26 texts"),
        ({**CAPITAL, "choices": ["a"] * 27}, "text", "choices: got 27 texts, expected a list of at most 26"),
    ],
)
def test_row_that_cannot_be_graded_is_refused_before_anything_is_asked(
    tmp_path: Path, row: Mapping[str, Any], grader: str | None, message: str
) -> None:
    with pytest.raises(BenchmarkError, match=r"mine\.jsonl:1: ") as error:
        load_tasks("qa", write(tmp_path / "mine.jsonl", row), grader)
    assert message in error.value.message


async def test_own_benchmark_and_own_graders_are_functions_by_import_path(own: str) -> None:
    prime, words = load_tasks(f"{own}:rows", "7")
    assert prime.query == "Is 7 prime?"
    async with Grader() as judge:
        assert [(await judge.judge(prime, reply)).correct for reply in ("Yes.", "No.")] == [True, False]
        long = "one two three four five six seven eight nine ten"
        found = [await judge.judge(words, reply) for reply in (long, "short", "")]
    assert [verdict.status for verdict in found] == ["correct", "wrong", "ungradable"]


async def test_own_grader_judges_a_published_benchmark_too(own: str, tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}
    (task,) = load_tasks("gsm8k", write(tmp_path / "test.jsonl", row), f"{own}:fails")
    async with Grader() as judge:
        failed = await judge.judge(task, "42")
        broken = await judge.judge(task.model_copy(update={"grader": f"{own}:is_broken"}), "42")
    assert (failed.status, failed.correct) == ("error", None)
    assert failed.detail == "own_tasks:fails failed: ValueError: no such luck"
    assert "expected True, False, None or a Verdict" in broken.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [("rowz", "did you mean 'rows'"), ("OWN", "has no 'OWN'"), ("fails", "failed: TypeError")],
)
def test_wrong_import_path_of_a_benchmark_is_named(own: str, name: str, message: str) -> None:
    with pytest.raises((ConfigError, BenchmarkError), match=message):
        load_tasks(f"{own}:{name}", "7")


@pytest.mark.parametrize(
    ("gold", "reply"),
    [
        ("#### 42", "So 42."),
        ("... #### 1,234", "1234"),
        ("#### -5", "The answer is -5"),
        ("#### 7.5", "$7.50"),
    ],
)
async def test_official_gsm8k_rows_are_right_by_value(tmp_path: Path, gold: str, reply: str) -> None:
    (task,) = load_tasks("gsm8k", write(tmp_path / "test.jsonl", {"question": "How many?", "answer": gold}))
    assert task.id.startswith("gsm8k-") and task.query.startswith("How many?\n")
    async with Grader() as judge:
        assert [(await judge.judge(task, text)).correct for text in (reply, "0")] == [True, False]


def test_training_draws_from_the_same_rows_of_your_own(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(40)]
    path = write(tmp_path / "mine.jsonl", *rows)
    config = DataConfig(benchmark="qa", data=str(path), grader="number", num_train=5, num_validation=5)
    split = TaskSplit.load(config)
    assert {task.grader for task in split.train} == {"number"}
    usable = split_tasks(load_tasks("qa", path, "number"))[0]
    assert {*split.by_id} <= {task.id for task in usable}


async def test_example_of_the_page_on_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(
        r"```python\n(# mine\.py.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
    )
    assert code is not None
    (tmp_path / "mine.py").write_text(code[1])
    (tmp_path / "tickets.csv").write_text("text,team\nMy printer burns.,Hardware\n")
    monkeypatch.chdir(tmp_path)
    (task,) = load_tasks("mine:tickets", "tickets.csv")
    async with Grader() as judge:
        assert (await judge.judge(task, "It is for hardware")).correct is True
