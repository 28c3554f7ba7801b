"""What vLLM raises, as errors of an engine."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2_serve.engines.provider_errors import is_context_overflow
from r2_serve.errors import ConfigError, ContextOverflow, EngineError, EngineRefused, EngineUnavailable

_ERROR_LINE = re.compile(r"(?P<error>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): .+)")
_NO_CAUSE = "Engine core initialization failed"
"""What vLLM raises in our process while the error itself is in the output of its own process."""
_TAIL_BYTES = 1_000_000
_STANDARD_ERROR = Path("/proc/self/fd/2")


@contextmanager
def start_errors(model: str) -> Iterator[None]:
    """Raises: ConfigError for arguments or files that vLLM refuses, EngineUnavailable for any other failure
    of its start. Both name the cause, the node and the log file.
    """
    log = _log_file()
    start = log.stat().st_size if log else 0
    try:
        yield
    except Exception as e:
        cause = f"{type(e).__name__}: {e}"
        if log and _NO_CAUSE in cause:
            cause = cause_in(_text_after(log, start)) or cause
        where = f"; log file {log}" if log else ""
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


def _log_file() -> Path | None:
    """The file that holds standard error of this process, as of every worker of Ray; None for a terminal."""
    try:
        path = _STANDARD_ERROR.readlink()
    except OSError:
        return None
    return path if path.is_file() else None


def _text_after(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


@contextmanager
def as_engine_errors() -> Iterator[None]:
    """Raises: EngineRefused for an error that the request caused, EngineUnavailable for any other."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except EngineError:
        raise
    except (VLLMClientError, ValueError) as e:
        refusal = ContextOverflow if is_context_overflow(str(e)) else EngineRefused
        raise refusal.of(getattr(e, "parameter", None), f"vLLM refused the request: {str(e)[:300]}") from e
    except Exception as e:
        raise EngineUnavailable(f"vLLM failed: {type(e).__name__}: {str(e)[:300]}") from e
