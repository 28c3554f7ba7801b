"""Values that YAML or pydantic would let pass: `yes` for a number, a port out of range."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from r2_serve.config import Config
from r2_serve.errors import ConfigError
from r2_serve.serve_config.imports import import_problems
from r2_serve.serve_config.sections import read_file
from tests.serve_config.test_serve_config import SMALL, edited, only_problem, parsed, read


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("deadline_s: 60", "deadline_s: yes"),
        ("deadline_s: 60", "deadline_s: 60\n        max_cost_usd: true"),
        ("max_running: 8", "max_running: on"),
        ("usd_per_mtok_in: 0.1", "usd_per_mtok_in: no"),
        ("decomposer: {model: large}", "decomposer: {model: large, num_samples: True}"),
        ("delay_s: 0.1", "delay_s: off"),
    ],
)
def test_truth_value_is_no_number(old: str, new: str) -> None:
    problem = only_problem(edited(old, new))
    given = new.rpartition(": ")[2].rstrip("}")
    assert problem.severity == "error"
    assert problem.message == f"got {given}, which YAML reads as true or false: expected a number"


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_infinity_and_nan_are_no_numbers(number: str) -> None:
    problems = [
        p for p in read(edited("deadline_s: 60", f"deadline_s: {number}"))[1] if p.severity == "error"
    ]
    assert f"got {number}, expected a finite number" in [problem.message for problem in problems]


class Settings(Config):
    """A file of any kind that the shared reader reads."""

    rates: dict[str, float] = Field(default_factory=dict)
    steps: list[int] = Field(default_factory=list)
    is_on: bool = False
    trainer: dict[str, object] = Field(default_factory=dict)


def settings(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "settings.yaml").write_text(text)
    return read_file(tmp_path / "settings.yaml", Settings)


def test_number_with_an_exponent_and_no_dot_is_a_number_in_every_file(tmp_path: Path) -> None:
    read_settings = settings(tmp_path, "trainer: {learning_rate: 2e-5, a: 1E6, b: -3e+2, c: 'e5', d: '2e-5'}")
    assert read_settings.trainer == {"learning_rate": 2e-5, "a": 1e6, "b": -300.0, "c": "e5", "d": "2e-5"}


def test_truth_values_in_lists_and_mappings_of_numbers_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, "rates:\n  a: yes\nsteps:\n- 1\n- no\nis_on: yes\n")
    assert "2 errors" in caught.value.message
    assert "line 2: error: rates.a: got yes" in caught.value.message
    assert "line 5: error: steps[1]: got no" in caught.value.message


@pytest.mark.parametrize("port", [70000, 0, -1])
def test_port_that_no_server_can_have_is_an_error(port: int) -> None:
    problem = only_problem(edited("port: 8000", f"port: {port}"))
    assert (problem.where, problem.severity) == ("http_options.port", "error")
    assert problem.message == f"got {port}, expected a port from 1 to 65535"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://api.example/v1/chat/completions", "write https://api.example/v1"),
        ("https://api.example/v1/chat/completions/", "write https://api.example/v1"),
        ("https://api.example/v1/responses", "write https://api.example/v1"),
        ("'https://api.example/v1 '", "holds blanks: write https://api.example/v1"),
        ("' https://api.example/v1'", "holds blanks: write https://api.example/v1"),
        ("https://api.example:70000/v1", "Port out of range"),
    ],
)
def test_base_url_that_would_fail_says_what_to_write(url: str, message: str) -> None:
    problem = only_problem(edited("kind: openai,", f"kind: openai, base_url: {url},"))
    assert problem.where.endswith("engine.base_url") and message in problem.message


# -- functions and classes that the file names ----------------------------------------------------------

POLICIES = """
def by_hour(context): return 1, {}
def without_context(): return 1, {}
class Steady:
    def __init__(self, replicas): ...
    def __call__(self, context): ...
NUMBER = 3
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("policies_of_a_test:by_hour", None),
        ("policies_of_a_test.by_hour", None),
        ("policies_of_a_test:by_our", "has no 'by_our'; did you mean 'by_hour'?"),
        ("policies_of_a_test:without_context", "it must take one AutoscalingContext"),
        ("policies_of_a_test:Steady", "policy_kwargs do not fit"),
        ("policies_of_a_test:NUMBER", "is a int, expected a function or a class"),
        ("raises_in_a_test:by_hour", "importing 'raises_in_a_test' failed: RuntimeError: no such table"),
        ("leaves_in_a_test:by_hour", "importing 'leaves_in_a_test' failed: SystemExit: 3"),
        ("not_installed:by_hour", "No module named 'not_installed'"),
        ("by_hour", "expected MODULE:NAME"),
    ],
)
def test_policy_that_ray_could_not_import_or_call_is_reported(
    function: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies_of_a_test.py").write_text(POLICIES)
    (tmp_path / "raises_in_a_test.py").write_text("raise RuntimeError('no such table')")
    (tmp_path / "leaves_in_a_test.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace(
        "max_replicas: 2", f"max_replicas: 2\n      policy: {{policy_function: '{function}'}}"
    )
    found = list(import_problems(parsed(text)))
    assert [message in problem.message for problem in found] == [True] * (message is not None), found
    assert all(problem.where.endswith("policy.policy_function") for problem in found)


def test_sections_of_r2_are_not_searched_for_import_paths() -> None:
    text = edited("    server:\n", "    policy_function: not_installed:f\n    server:\n")
    assert list(import_problems(parsed(text))) == []
