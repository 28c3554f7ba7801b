"""A start of vLLM that fails names its cause, log file and node."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from r2_serve.engines.vllm_errors import cause_in, check_cuda, check_platform, start_errors
from r2_serve.errors import ConfigError, EngineUnavailable

LOG = """\
(EngineCore pid=7) ERROR 11-28 08:00:01 [core.py:900] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-28 08:00:01 [core.py:900] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-28 08:00:01 [core.py:900] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
FAILING = """
import sys
from r2_serve.engines.vllm_errors import start_errors
from r2_serve.errors import EngineUnavailable
try:
    with start_errors("a/b"):
        sys.stderr.write(sys.argv[1])
        sys.stderr.flush()
        raise RuntimeError("Engine core initialization failed. See root cause above.")
except EngineUnavailable as e:
    print(e.message)
"""


def test_cause_is_the_error_of_the_engine_and_not_the_report_of_it() -> None:
    assert cause_in(LOG) == "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    assert cause_in("INFO all is well\n") is None


def test_failure_in_vllms_own_process_names_cause_log_file_and_node(tmp_path: Path) -> None:
    log = tmp_path / "worker.err"
    log.write_text("ValueError: of an earlier start\n")
    with log.open("a") as errors:
        done = subprocess.run(
            [sys.executable, "-c", FAILING, LOG], stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        )
    assert "'a/b'" in done.stdout and f"on node {socket.gethostname()}" in done.stdout
    assert "torch.OutOfMemoryError: CUDA out of memory" in done.stdout and "earlier" not in done.stdout
    assert f"log files {log}" in done.stdout


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("no"), ConfigError), (RuntimeError("no"), EngineUnavailable)]
)
def test_refused_arguments_are_an_error_of_the_config(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"{type(error).__name__}: no"), start_errors("a/b"):
        raise error


@pytest.mark.parametrize(
    ("torch_cuda", "message"),
    [(None, "torch is a build for CPUs"), ("13.0", "torch is built for CUDA 13.0 and sees no driver")],
)
def test_reserved_gpu_without_cuda_says_which_of_two_causes_it_is(
    torch_cuda: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cuda("0", torch_cuda, has_cuda=False)


@pytest.mark.parametrize("reserved", [None, "", "-1", "NoDevFiles"])
def test_cpus_serve_where_no_gpu_was_reserved(reserved: str | None) -> None:
    check_cuda(reserved, None, has_cuda=False)
    check_cuda("0", "13.0", has_cuda=True)


def test_build_for_gpus_without_a_gpu_is_not_taken_for_the_one_for_cpus() -> None:
    check_platform(is_cpu_build=True)
    with pytest.raises(ConfigError, match=r"is a build for GPUs.*set num_gpus"):
        check_platform(is_cpu_build=False)
