"""`validate` says of each gate what would not work: names, files, functions, and missing evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.router.test_fitted_plan import fit_of, written
from tests.serve_config.test_serve_config import edited, read

DECOMPOSER = "          decomposer: {model: large}"


def problems(gate: str, policy: str = "one:g") -> list[tuple[str, str]]:
    text = edited(DECOMPOSER, f"          policy: {policy}\n          gates: {{g: {gate}}}\n{DECOMPOSER}")
    return [(problem.severity, problem.message) for problem in read(text)[1]]


@pytest.mark.parametrize("policy", ["one:g", "all:g", "learned"])
def test_gate_may_be_named_where_a_model_may(policy: str) -> None:
    assert problems("{ask: [small, large], accept: [{kind: agreement}]}", policy) == []


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            "{ask: [small, huge], accept: [{kind: agreement}]}",
            "gate 'g' asks ['huge']: choose among the pool",
        ),
        ("{ask: [small, small], accept: [{kind: agreement}]}", "a gate asks each model once"),
        (
            "{ask: [small, large], accept: [{kind: agreement, votes: 3}]}",
            "3 votes are more than the 2 models",
        ),
        ("{ask: [small, large]}", "at least 1 item"),
        ("{}", "a gate has either `file`, or `ask` and `accept`"),
        ("{file: f.json, ask: [small, large]}", "a fitted one has its own models and rules"),
        ("{file: /nowhere/f.json}", "No such file or directory"),
        (
            "{ask: [small, large], accept: [{kind: check, function: 'json:no_such'}]}",
            "module 'json' has no 'no_such'",
        ),
    ],
)
def test_gate_that_could_not_work_is_an_error(gate: str, message: str) -> None:
    (found,) = [text for severity, text in problems(gate) if severity == "error"]
    assert message in found


@pytest.mark.parametrize("name", ["small", "auto", "request"])
def test_gate_may_not_have_the_name_of_a_model_or_a_reserved_one(name: str) -> None:
    gate = "{ask: [small, large], accept: [{kind: agreement}]}"
    text = edited(DECOMPOSER, f"          gates: {{{name}: {gate}}}\n{DECOMPOSER}")
    (problem,) = read(text)[1]
    assert "has the name of a model of the pool, or a reserved one" in problem.message


def test_checker_must_be_a_model() -> None:
    found = problems("{ask: [small, large], accept: [{kind: checker, model: gpt-9}]}")
    assert [severity for severity, _ in found] == ["error"]
    assert "'gpt-9'" in found[0][1]


def test_file_that_is_no_gate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    path.write_text("[]")
    ((severity, message),) = problems(f"{{file: {path}}}")
    assert severity == "error" and "is no fitted policy" in message


def test_gate_file_that_is_not_there_or_cut_is_named_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    ((_, message),) = problems(f"{{file: {path}}}")
    assert f"{path} cannot be read: No such file or directory" in message
    path.write_text("{")
    ((_, message),) = problems(f"{{file: {path}}}")
    assert "is no fitted policy: the file: Invalid JSON" in message


@pytest.mark.parametrize(
    ("fields", "severity", "message"),
    [
        ("plan_file: /nowhere/p.json", "error", "plan_file /nowhere/p.json cannot be read: No such file"),
        ("plan_file: GATE", "error", "is no fit of `plan: auto`"),
        ("plan: never, plan_file: PLAN", "warning", "`plan_file` has no effect with `plan: never`"),
    ],
)
def test_plan_file_that_could_not_work_is_named(
    tmp_path: Path, fields: str, severity: str, message: str
) -> None:
    gate = tmp_path / "gate.json"
    gate.write_text('{"kind": "r2-gate-1"}')
    plan = written(tmp_path / "plan.json", fit_of())
    lines = [
        f"          {part}" for part in fields.replace("GATE", str(gate)).replace("PLAN", plan).split(", ")
    ]
    ((found, text),) = [
        (problem.severity, problem.message)
        for problem in read(edited(DECOMPOSER, "\n".join([*lines, DECOMPOSER])))[1]
    ]
    assert found == severity and message in text
