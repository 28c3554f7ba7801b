"""Official files become tasks, errors name file and line, ids decide the split. All data is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2_serve.grading.rows import BENCHMARKS, Benchmark, BenchmarkError
from r2_serve.lab.evaluation.benchmarks import is_test, load_tasks, sample_tasks, split_tasks
from tests.support.official_rows import CHAMP, CSQA, MATH, MUSIQUE, P3, SCAN_LINE


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def write_list(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


@pytest.mark.parametrize(
    ("benchmark", "name", "write", "row", "task_id", "asked"),
    [
        ("csqa", "dev.jsonl", write_lines, CSQA, "c1", "(B) library"),
        ("p3", "puzzles.json", write_list, P3, "Study_1:0", "def sat(x: int)"),
        ("champ", "champ.json", write_list, CHAMP, "P_1", "How many?"),
        ("musique", "dev.jsonl", write_lines, MUSIQUE, "2hop__1_2", "Ann wrote it."),
    ],
)
def test_official_rows_become_tasks_and_stay_verbatim(
    tmp_path: Path,
    benchmark: Benchmark,
    name: str,
    write: Callable[..., Path],
    row: dict[str, Any],
    task_id: str,
    asked: str,
) -> None:
    (task,) = load_tasks(benchmark, write(tmp_path / name, row))
    assert (task.id, task.benchmark, task.row) == (task_id, benchmark, row)
    assert asked in task.query


def test_math_problem_has_one_id_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "algebra").mkdir()
    (tmp_path / "algebra" / "1.json").write_text(json.dumps(MATH))
    forms = [
        MATH,
        {
            "problem": MATH["problem"],
            "solution": "See above.",
            "answer": "2",
            "unique_id": "test/algebra/1.json",
        },
        {"question": MATH["problem"], "answer": MATH["solution"]},
    ]
    tasks = [load_tasks("math", write_lines(tmp_path / "rows.jsonl", form))[0] for form in forms]
    tasks += load_tasks("math", tmp_path / "algebra")
    assert len({(task.id, task.query) for task in tasks}) == 1
    assert [task.row for task in tasks] == [*forms, MATH]


def test_scan_lines_and_the_generated_split_agree(tmp_path: Path) -> None:
    (task,) = load_tasks("scan", write_lines(tmp_path / "tasks.txt", SCAN_LINE))
    generated = {task.id: task for split in ("simple", "length") for task in load_tasks("scan", split)}
    long = next(task for task in generated.values() if len(task.row["actions"].split()) > 22)
    assert (task.query, task.row["actions"]) == ("jump twice", "I_JUMP I_JUMP")
    (from_file,) = load_tasks(
        "scan", write_lines(tmp_path / "long.txt", f"IN: {long.query} OUT: {long.row['actions']}")
    )
    assert from_file == long


def test_word_problems_are_generated() -> None:
    tasks = load_tasks("words", "test")
    assert len(tasks) == 1000
    assert all(task.row["gold"].isdigit() for task in tasks)


def test_no_query_holds_a_field_that_only_graders_may_see(tmp_path: Path) -> None:
    secret = "SECRETGOLD"
    rows: dict[Benchmark, dict[str, Any]] = {
        "math": {**MATH, "solution": f"\\boxed{{{secret}}}"},
        "p3": {**P3, "sol_bodies": [f"    return '{secret}'"]},
        "champ": {**CHAMP, "problem_answer": secret},
        "musique": {
            **MUSIQUE,
            "answer": secret,
            "answer_aliases": [secret],
            "question_decomposition": [{"answer": secret}],
        },
    }
    for benchmark, row in rows.items():
        write = write_list if benchmark in ("p3", "champ") else write_lines
        (task,) = load_tasks(
            benchmark, write(tmp_path / f"{benchmark}.{'json' if write is write_list else 'jsonl'}", row)
        )
        assert secret not in task.query


@pytest.mark.parametrize(
    ("benchmark", "name", "text", "message"),
    [
        ("csqa", "a.jsonl", json.dumps(CSQA) + "\n{broken", r"a\.jsonl:2: not JSON"),
        (
            "csqa",
            "a.jsonl",
            '\n\n{"id": "x"}',
            r"a\.jsonl:3: not a csqa row: question: is missing; answerKey: is missing",
        ),
        (
            "csqa",
            "a.jsonl",
            json.dumps({**CSQA, "answerKey": "F"}),
            r"a\.jsonl:1: .*answerKey 'F' is not among the choices",
        ),
        (
            "csqa",
            "a.jsonl",
            json.dumps(CSQA) + "\n" + json.dumps(CSQA),
            r"a\.jsonl:2: task 'c1' stands already at .*a\.jsonl:1",
        ),
        ("csqa", "a.jsonl", "[1]", r"a\.jsonl:1: expected a JSON object, found list"),
        ("csqa", "a.jsonl", "\n", r"a\.jsonl: holds no csqa rows"),
        ("p3", "a.json", '{"sat": 1}', r"a\.json: expected a JSON list of rows, found dict"),
        ("p3", "a.json", '[\n{"sat"\n]', r"a\.json:3: not JSON"),
        (
            "p3",
            "a.json",
            json.dumps([P3, {**P3, "ans_type": "Dict[str, int]"}]),
            r"a\.json\[1\]: not a p3 row: ans_type: ",
        ),
        ("math", "a.jsonl", '{"problem": "x", "solution": "no box"}', r"a\.jsonl:1: .*no final answer"),
        ("math", "a.jsonl", '{"solution": "\\\\boxed{1}"}', r"a\.jsonl:1: not a math row: problem"),
        ("scan", "a.txt", SCAN_LINE + "\nOUT: I_JUMP", r"a\.txt:2: expected 'IN: <command> OUT: <actions>'"),
        (
            "musique",
            "a.jsonl",
            '{"id": "x", "question": "q"}',
            r"a\.jsonl:1: not a musique row: answer: is missing",
        ),
    ],
)
def test_errors_name_file_line_and_field(
    tmp_path: Path, benchmark: Benchmark, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        load_tasks(benchmark, tmp_path / name)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_missing_file_is_an_error(tmp_path: Path, benchmark: Benchmark) -> None:
    with pytest.raises(BenchmarkError, match="no such file"):
        load_tasks(benchmark, tmp_path / "none.jsonl")


def test_split_is_disjoint_complete_and_independent_of_order() -> None:
    tasks = load_tasks("scan", "length")
    development, test = split_tasks(tasks, test_share=0.3)
    again = split_tasks(reversed(tasks), test_share=0.3)
    assert not {task.id for task in development} & {task.id for task in test}
    assert {task.id for task in (*development, *test)} == {task.id for task in tasks}
    assert {task.id for task in again[1]} == {task.id for task in test}
    assert 0.27 < len(test) / len(tasks) < 0.33


def test_instances_of_one_puzzle_fall_on_one_side() -> None:
    assert all(len({is_test(f"Puzzle{i}:{k}") for k in range(5)}) == 1 for i in range(50))
    assert len({is_test(f"Puzzle{i}:0") for i in range(50)}) == 2


def test_split_of_an_id_never_changes() -> None:
    assert [is_test(f"task-{i}") for i in range(12)] == [side == "1" for side in "111000111111"]


def test_larger_sample_holds_the_smaller_one() -> None:
    tasks = load_tasks("scan", "length")
    small, large = sample_tasks(tasks, 50), sample_tasks(tasks, 500)
    assert (len(small), len(large)) == (50, 500)
    assert {task.id for task in small} <= {task.id for task in large}
    assert sample_tasks(tuple(reversed(tasks)), 50) == tuple(reversed(small))
    assert sample_tasks(tasks, 10**6) == tasks
