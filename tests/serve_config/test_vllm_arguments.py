"""Engine arguments that vLLM does not know, refuses, or gets wrong in silence."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from r2_serve.engines.vllm_arguments import installed_arguments, known_arguments
from r2_serve.serve_config.document import Problem
from tests.serve_config.test_serve_config import edited, read

ENGINE = "applications[0].args.engine.engine_kwargs"


def on_vllm(arguments: str, gpus: str = "num_gpus: 1", context_tokens: int | None = None) -> list[Problem]:
    """The problems of the small config whose model runs in vLLM with these engine arguments."""
    text = edited("kind: scripted, delay_s: 0.1", f"kind: vllm, model: a/b, engine_kwargs: {{{arguments}}}")
    if context_tokens is not None:
        served = "engine: {kind: served, app: m-small}"
        assert served in text
        text = text.replace(served, f"{served}\n      context_tokens: {context_tokens}")
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


def test_replica_that_lets_in_fewer_calls_than_vllm_works_on_is_a_warning() -> None:
    """The small config lets 64 in."""
    (problem,) = on_vllm("max_num_seqs: 512")
    assert problem.severity == "warning" and problem.where.endswith(".max_ongoing_requests")
    assert "lets 64 calls in, but vLLM works on 512 at once" in problem.message
    assert on_vllm("max_num_seqs: 64") == []


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
def test_more_gpu_memory_than_the_share_of_the_gpu_is_an_error(arguments: str) -> None:
    (problem,) = on_vllm(arguments, "num_gpus: 0.5")
    assert problem.severity == "error" and "num_gpus 0.5" in problem.message
    assert problem.message.endswith("set at most 0.5")


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        ("gpu_memory_utilization: 0.45", "num_gpus: 0.5"),
        ("kv_cache_memory_bytes: 1000000", "num_gpus: 0.5"),
        ("gpu_memory_utilization: 1.0, max_lora_rank: 32", "num_gpus: 1"),
        ("tensor_parallel_size: 2, pipeline_parallel_size: 2", "num_gpus: 4"),
        (
            "tensor_parallel_size: 2",
            "num_gpus: 0\n    placement_group_bundles: [{CPU: 1}, {GPU: 1}, {GPU: 1}]",
        ),
        (
            "tensor_parallel_size: 2, distributed_executor_backend: mp",
            "num_gpus: 2\n    placement_group_bundles: [{CPU: 1, GPU: 2}]",
        ),
    ],
)
def test_arguments_that_fit_are_no_problem(arguments: str, gpus: str) -> None:
    assert on_vllm(arguments, gpus) == []


@pytest.mark.skipif(find_spec("vllm") is None, reason="the list is compared with the installed vLLM")
def test_list_of_arguments_is_that_of_the_pinned_vllm() -> None:
    assert sorted(known_arguments()) == installed_arguments()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "max_model_length: 8",
            "no engine argument 'max_model_length'; did you mean 'max_model_len'?",
        ),
        ("tensor-parallel-size: 1", "did you mean 'tensor_parallel_size'?"),
        ("zzz: 1", "vLLM has no engine argument 'zzz'; its fields are those of `vllm serve --help`"),
    ],
)
def test_argument_that_vllm_does_not_have_gets_a_suggestion(arguments: str, message: str) -> None:
    (problem,) = on_vllm(arguments)
    assert problem.severity == "error" and message in problem.message


@pytest.mark.parametrize(
    ("bundles", "message"),
    [
        (
            "[{CPU: 1}, {GPU: 1}]",
            "needs 2 GPUs, but its placement group holds 1: set `placement_group",
        ),
        ("[{CPU: 1, GPU: 2}]", "one GPU per bundle, got a bundle with GPU 2: write 2 bundles of `GPU: 1`"),
        ("[{GPU: 1}, {GPU: 1}]", "got 2, of which the replica itself takes num_gpus 1: set `num_gpus: 0`"),
    ],
)
def test_placement_group_without_a_bundle_for_each_worker_is_an_error(bundles: str, message: str) -> None:
    (problem,) = on_vllm("tensor_parallel_size: 2", f"num_gpus: 1\n    placement_group_bundles: {bundles}")
    assert problem.severity == "error" and message in problem.message


@pytest.mark.parametrize(
    ("length", "card", "message"),
    [
        (8192, 16384, "got 16384, but application 'm-small' runs with max_model_len 8192"),
        (8192, None, "got 32768 (the default), but application 'm-small' runs with max_model_len 8192"),
        (8192, 8192, None),
        (-1, 8192, None),
    ],
)
def test_card_with_more_context_than_its_engine_is_an_error(
    length: int, card: int | None, message: str | None
) -> None:
    problems = on_vllm(f"max_model_len: {length}", context_tokens=card)
    assert [problem.severity for problem in problems] == ["error"] * (message is not None)
    assert all(message is not None and message in problem.message for problem in problems)


def test_number_that_serve_deploy_would_read_as_text_is_a_warning() -> None:
    (problem,) = on_vllm("cpu_offload_gb: 1e1")
    assert problem.severity == "warning"
    assert problem.message == "`serve deploy` reads 1e1 as text: write 1.0e+1"
