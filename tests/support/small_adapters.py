"""Adapters on disk for the tests of publishing. The weights are a few bytes where the scripted engine, which
reads none, serves."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r2_serve.adapters import write_adapter
from r2_serve.prompts import get_codec
from r2_serve.types import AdapterManifest


def manifest(name: str, **changes: Any) -> AdapterManifest:
    """The manifest of a LoRA decomposer for `planner`, with the present instruct codec."""
    values = {
        "name": name,
        "base": "planner",
        "module": "decomposer",
        "codec": "instruct",
        "codec_version": get_codec(changes.get("codec", "instruct")).version,
        "data_sha256": hashlib.sha256(b"data").hexdigest(),
        "created": datetime(2026, 11, 24, tzinfo=UTC),
        "trainer": "r2-train sft",
        "metrics": {"valid": 0.97},
        **changes,
    }
    return AdapterManifest.model_validate(values)


def lora_source(folder: Path, weights: bytes = b"weights") -> Path:
    """What a LoRA trainer leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def adapter(parent: Path, name: str, **changes: Any) -> Path:
    """A published-to-be adapter in `parent/NAME`."""
    return write_adapter(
        lora_source(parent / "trained" / name, name.encode()), parent, manifest(name, **changes)
    )
