"""LoRA checkpoints as throw-away adapters of the served base: loaded, measured, dropped.

So a checkpoint is measured on the very engine that users get, with its continuous batching, and no engine
starts for it. An adapter is loaded at the first call that names it, and its name holds the hash of its
weights, so that a stored reply belongs to them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from r2_serve.config import (
    AdapterLoad,
    ModelConfig,
    ModelServerConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from r2_serve.engines import resolve_checkpoint
from r2_serve.errors import EngineError, EngineRefused
from r2_serve.types import Completion, Delta, Engine, EngineCall

ADAPTER_CONFIG = "adapter_config.json"
NO_ADAPTER = "no adapter "
"""The beginning of every engine's refusal of a name that it does not have."""


class AdapterHost(Protocol):
    """Something that loads adapters: an engine in this process, or a served model's replicas."""

    async def load_adapter(self, name: str, path: str) -> None: ...

    async def unload_adapter(self, name: str) -> None: ...


@dataclass(frozen=True)
class ServedHost:
    """The replicas of a served model on the Ray cluster. Every node must see the adapter's directory."""

    app: str

    async def load_adapter(self, name: str, path: str) -> None:
        from r2_serve.cluster.deployments import load_on_every_replica

        await load_on_every_replica(AdapterLoad(app=self.app, name=name, path=path))

    async def unload_adapter(self, name: str) -> None:
        from r2_serve.cluster.deployments import unload_on_every_replica

        await unload_on_every_replica(self.app, name)


@dataclass
class AdaptedEngine:
    """An engine whose throw-away adapters are loaded when they are first named, and dropped at the end.

    Each is loaded under a name of its own, as several ranks may measure the same weights at once.
    """

    engine: Engine
    host: AdapterHost
    paths: Mapping[str, Path]
    """Directories of the adapters by the name that calls use."""
    _loaded: dict[str, str] = field(default_factory=dict)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def generate(self, call: EngineCall) -> Completion:
        named = await self._with_adapter(call)
        try:
            return await self.engine.generate(named)
        except EngineRefused as e:
            if call.adapter is None or named.adapter == call.adapter or NO_ADAPTER not in e.message:
                raise
        await self.host.load_adapter(str(named.adapter), str(self.paths[call.adapter].resolve()))
        return await self.engine.generate(named)  # a replica that started since then has it now

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        async for delta in self.engine.stream(await self._with_adapter(call)):
            yield delta

    async def aclose(self) -> None:
        """Drops the adapters, and ends the engine if it can be ended. A dead engine has dropped them."""
        while self._loaded:
            _, name = self._loaded.popitem()
            try:
                await self.host.unload_adapter(name)
            except EngineError:
                continue
        if (close := getattr(self.engine, "aclose", None)) is not None:
            await close()

    async def _with_adapter(self, call: EngineCall) -> EngineCall:
        stable = call.adapter
        if stable is None or stable not in self.paths:
            return call
        async with self._loading:
            if stable not in self._loaded:
                name = f"{stable}-{uuid.uuid4().hex[:8]}"
                await self.host.load_adapter(name, str(self.paths[stable].resolve()))
                self._loaded[stable] = name
        return call.model_copy(update={"adapter": self._loaded[stable]})


@dataclass(frozen=True)
class Borrowed:
    """An engine that another pool owns and ends."""

    engine: Engine

    async def generate(self, call: EngineCall) -> Completion:
        return await self.engine.generate(call)

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        return self.engine.stream(call)


def can_serve(path: Path, model: ModelConfig, apps: Mapping[str, ModelServerConfig]) -> bool:
    """True if the checkpoint at `path` is a LoRA of the very base that is served, with an engine that takes
    LoRA."""
    config = path / ADAPTER_CONFIG
    if model.engine.kind != "served" or model.engine.app not in apps or not config.is_file():
        return False
    engine = apps[model.engine.app].engine
    if isinstance(engine, TransformersEngineConfig):
        served = engine.path
    elif isinstance(engine, VllmEngineConfig) and (
        engine.adapters or engine.engine_kwargs.get("enable_lora")
    ):
        served = engine.model
    else:
        return False
    trained = str(json.loads(config.read_text()).get("base_model_name_or_path"))
    return _place(trained) == _place(served)


def _place(base: str) -> str:
    path = Path(resolve_checkpoint(base))
    return str(path.resolve()) if path.is_dir() else base
