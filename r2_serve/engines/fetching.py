"""Checkpoints from the Hugging Face hub, fetched before an engine loads them, with further tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from r2_serve.config import LocalEngineConfig
from r2_serve.engines import is_local_checkpoint
from r2_serve.errors import EngineUnavailable

WAITS_S = (2.0, 10.0, 30.0)
"""Seconds before each further try: restarts of a hub's server and lost connections pass within a minute."""
IGNORED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*", "onnx/*")
"""Files that no engine of ours loads: weights in other formats than safetensors."""
_spent_s: list[float] = []
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True)
class Checkpoint:
    """A model of the hub, at one revision."""

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    """None: the cache in HF_HOME."""


def checkpoint_of(engine: LocalEngineConfig) -> Checkpoint | None:
    """The checkpoint that an engine would fetch; None if it runs none, or one of this machine."""
    if engine.kind not in ("vllm", "transformers", "sentence-embeddings"):
        return None
    name = str(getattr(engine, "model", None) or getattr(engine, "path", ""))
    if is_local_checkpoint(name) or name.startswith(("/", ".", "~")):
        return None
    kwargs = getattr(engine, "engine_kwargs", {})
    revision, cache_dir = kwargs.get("revision"), kwargs.get("download_dir")
    return Checkpoint(name, *(None if value is None else str(value) for value in (revision, cache_dir)))


def fetch(checkpoint: Checkpoint, sleep: Callable[[float], None] = time.sleep) -> str:
    """Fetches what is not in the cache yet, and gives its directory.

    Raises: EngineUnavailable, which says whether the hub refused or could not be reached.
    """
    began_s = time.monotonic()
    try:
        return _fetched(checkpoint, sleep)
    finally:
        _spent_s.append(time.monotonic() - began_s)


def seconds_spent() -> float:
    """Seconds that this process has spent on fetching weights: a part of its cold start."""
    return sum(_spent_s)


def _fetched(checkpoint: Checkpoint, sleep: Callable[[float], None]) -> str:
    from huggingface_hub import snapshot_download

    for wait_s in (*WAITS_S, None):
        try:
            return snapshot_download(
                checkpoint.name,
                revision=checkpoint.revision,
                cache_dir=checkpoint.cache_dir,
                ignore_patterns=list(IGNORED),
            )
        except Exception as e:
            if wait_s is None or not _passes(e):
                raise EngineUnavailable(f"{checkpoint.name!r} was not fetched: {_reason(e)}") from e
            sleep(wait_s)
    raise AssertionError


def _passes(error: Exception) -> bool:
    """Whether a further try may succeed: no answer, or one that the hub gives for a while only."""
    from httpx import TransportError
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    status = _status(error)
    if status is not None:
        return status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, TransportError | ConnectionError | TimeoutError | FileNotFoundError)


def _reason(error: Exception) -> str:
    if _status(error) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        hint = "is the name right, and does HF_TOKEN have access to it?"
        return f"the hub answered {_status(error)}; {hint}"
    return f"{type(error).__name__}: {str(error)[:300]}"


def _status(error: Exception) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
