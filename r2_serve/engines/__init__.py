"""Engines: how a model is run (`transformers`, `vllm`), reached (`hosted`), replayed (`recorded`) or
faked (`scripted`).

Each implements `r2_serve.types.Engine` and raises `EngineError`s only. Importing this package loads none of
their libraries: `make_engine` imports what the configured kind needs.
"""

from __future__ import annotations

from pathlib import Path

from r2_serve import EMBEDDED
from r2_serve.config import (
    EmbeddingsEngineConfig,
    EngineConfig,
    HostedEngineConfig,
    LocalEngineConfig,
    NumpyEngineConfig,
    RecordedEngineConfig,
    ServedEngineConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from r2_serve.errors import ConfigError
from r2_serve.types import Engine, LocalEngine

EMBEDDED_PREFIX = "embedded:"


def make_engine(config: EngineConfig) -> Engine:
    """The engine that `config` describes; a local one is ready, which takes seconds to minutes.

    Raises: ConfigError if the configuration, a file or an environment variable is missing or wrong.
    """
    if isinstance(config, HostedEngineConfig):
        from r2_serve.engines.hosted import HostedEngine

        return HostedEngine(config)
    if isinstance(config, ServedEngineConfig):
        raise ConfigError(
            f"engine kind 'served' (application {config.app!r}) needs Ray: only a deployment can reach it"
        )
    return make_local_engine(config)


def make_local_engine(config: LocalEngineConfig, *, is_in_replica: bool = False) -> LocalEngine:
    """The engine of a model server, ready. In a replica of Ray Serve vLLM's metrics go to Ray's nodes.

    Raises: ConfigError, as `make_engine`.
    """
    if isinstance(config, NumpyEngineConfig):
        from r2_serve.engines.numpy_engine import NumpyEngine

        return NumpyEngine(config)
    if isinstance(config, TransformersEngineConfig):
        from r2_serve.engines.transformers import TransformersEngine

        return TransformersEngine(config)
    if isinstance(config, VllmEngineConfig):
        from r2_serve.engines.vllm import VllmEngine

        return VllmEngine(config, reports_to_ray=is_in_replica)
    if isinstance(config, EmbeddingsEngineConfig):
        from r2_serve.engines.embedder import EmbeddingsEngine

        return EmbeddingsEngine(config)
    if isinstance(config, RecordedEngineConfig):
        from r2_serve.engines.recorded import recorded_engine

        return recorded_engine(config)
    from r2_serve.engines.scripted import ScriptedEngine

    return ScriptedEngine.from_config(config)


def resolve_checkpoint(path: str) -> str:
    """The directory of a shipped model for `embedded:NAME` (`scan-1k`, `everyday/seed-0/decomposer`); any
    other `path` unchanged.

    Raises: ConfigError where no model of that name is shipped.
    """
    if not path.startswith(EMBEDDED_PREFIX):
        return path
    name = path.removeprefix(EMBEDDED_PREFIX)
    names = sorted(config.parent.relative_to(EMBEDDED).as_posix() for config in EMBEDDED.rglob("config.json"))
    if name not in names:
        raise ConfigError(f"no embedded model {name!r}; the shipped ones are {names}")
    return str(EMBEDDED / name)


def is_local_checkpoint(path: str) -> bool:
    """Whether `path` names files on this machine, so that nothing may be fetched for it."""
    return path.startswith(EMBEDDED_PREFIX) or Path(path).is_dir()
