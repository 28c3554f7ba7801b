"""Values that YAML or pydantic would let pass: `yes` for a number, arguments that vLLM refuses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import Field

from r2_serve.config import Config
from r2_serve.errors import ConfigError
from r2_serve.serve_config.document import Problem
from r2_serve.serve_config.imports import import_problems
from r2_serve.serve_config.sections import read_file
from tests.serve_config.test_serve_config import SMALL, edited, only_problem, parsed, read

ENGINE = "applications[0].args.engine.engine_kwargs"


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
    assert "2 error(s)" in caught.value.message
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


def on_vllm(arguments: str, gpus: str = "num_gpus: 1") -> list[Problem]:
    """The problems of the small config whose model runs in vLLM with these engine arguments."""
    text = edited("kind: scripted, delay_s: 0.1", f"kind: vllm, model: a/b, engine_kwargs: {{{arguments}}}")
    return read(text.replace("num_cpus: 1", gpus))[1]


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (
            "gpu_memory_utilization: 90",
            "gpu_memory_utilization",
            "got 90, expected a share of the GPU's memory",
        ),
        ("gpu_memory_utilization: 0", "gpu_memory_utilization", "got 0, expected"),
        ("gpu_memory_utilization: yes", "gpu_memory_utilization", "got True, expected"),
        ("enable_lora: true, max_lora_rank: 20", "max_lora_rank", "got 20, expected one of 1, 8, 16, 32"),
        ("enable_lora: true, max_loras: 0", "max_loras", "got 0, expected a whole number of at least 1"),
        ("max_num_seqs: 1.5", "max_num_seqs", "got 1.5, expected a whole number of at least 1"),
        ("tensor_parallel_size: 2", "tensor_parallel_size", "needs 2 GPUs, but a replica has num_gpus 1"),
        ("pipeline_parallel_size: 4", "pipeline_parallel_size", "needs 4 GPUs, but a replica has num_gpus 1"),
    ],
)
def test_what_vllm_would_refuse_is_an_error_that_names_the_conflict(
    arguments: str, key: str, message: str
) -> None:
    (problem,) = on_vllm(arguments)
    assert (problem.severity, problem.where) == ("error", f"{ENGINE}.{key}")
    assert message in problem.message


@pytest.mark.skipif(find_spec("vllm") is None, reason="the names are those of the installed vLLM")
@pytest.mark.parametrize(
    ("parser", "message"),
    [
        ("tool_parser: hermess", "the installed vLLM has no parser 'hermess'; did you mean 'hermes'?"),
        ("reasoning_parser: qwen", "the installed vLLM has no parser 'qwen'; did you mean 'qwen3'?"),
        ("tool_parser: hermes, reasoning_parser: qwen3", None),
    ],
)
def test_parser_that_the_installed_vllm_does_not_have_gets_a_suggestion(
    parser: str, message: str | None
) -> None:
    text = edited("kind: scripted, delay_s: 0.1", f"kind: vllm, model: a/b, {parser}")
    problems = read(text.replace("num_cpus: 1", "num_gpus: 1"))[1]
    assert [problem.message for problem in problems] == ([message] if message else [])


@pytest.mark.parametrize("arguments", ["gpu_memory_utilization: 0.9", "max_num_seqs: 8"])
def test_more_gpu_memory_than_the_share_of_the_gpu_is_a_warning(arguments: str) -> None:
    (problem,) = on_vllm(arguments, "num_gpus: 0.5")
    assert problem.severity == "warning" and "num_gpus 0.5" in problem.message


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        ("gpu_memory_utilization: 0.45", "num_gpus: 0.5"),
        ("kv_cache_memory_bytes: 1000000", "num_gpus: 0.5"),
        ("gpu_memory_utilization: 1.0, max_lora_rank: 32", "num_gpus: 1"),
        ("tensor_parallel_size: 2, pipeline_parallel_size: 2", "num_gpus: 4"),
    ],
)
def test_arguments_that_fit_are_no_problem(arguments: str, gpus: str) -> None:
    assert on_vllm(arguments, gpus) == []


def test_number_that_serve_deploy_would_read_as_text_is_a_warning() -> None:
    (problem,) = on_vllm("rope_theta: 1e6")
    assert problem.severity == "warning"
    assert problem.message == "`serve deploy` reads 1e6 as text: write 1.0e+6"


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
