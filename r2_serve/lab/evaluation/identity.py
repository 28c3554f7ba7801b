"""What decides the reply of a model to a call, as a hash, for caches of replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from r2_serve.config import ModelConfig, ModelServerConfig
from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.types import EngineCall


def call_key(identity: str, call: EngineCall) -> str:
    """The hash of everything that decides the reply."""
    parts = [
        identity,
        [[m.role, m.text] for m in call.messages],
        call.sampling.model_dump(mode="json", exclude_defaults=True),
        call.adapter,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def identity_of(model: ModelConfig, apps: Mapping[str, ModelServerConfig]) -> str:
    """The model's name and its engine's configuration. A checkpoint on this machine is named by its
    weights."""
    engine = model.engine
    config = apps[engine.app].engine if engine.kind == "served" and engine.app in apps else engine
    for field_name in ("path", "model"):
        path = getattr(config, field_name, "") if config.kind in ("numpy", "transformers", "vllm") else ""
        if path and is_local_checkpoint(path):
            config = config.model_copy(update={field_name: weights_sha256(Path(resolve_checkpoint(path)))})
    return f"{model.name}|{config.model_dump_json()}"


def weights_sha256(directory: Path) -> str:
    """The hash of the weights. It is computed each time, because training changes a directory's weights."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
