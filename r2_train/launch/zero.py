"""DeepSpeed's ZeRO configurations: the two shipped ones (for a 7B model with LoRA) and a user's own file.

Only workers import DeepSpeed itself. JSON has no comments, so docs/training.md explains each value.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from r2_serve.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
OFFLOAD = ("offload_optimizer", "offload_param")


def read_config(name: str | Path) -> dict[str, JsonValue]:
    """A shipped configuration (`zero2`, `zero3`) or a file. Raises: ConfigError if the file is not one."""
    path = CONFIGS / f"{name}.json" if name in ("zero2", "zero3") else Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read the DeepSpeed configuration {path}: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"the DeepSpeed configuration {path} is not JSON: {e}") from e
    if not isinstance(config, dict) or "zero_optimization" not in config:
        raise ConfigError(
            f"{path} is no DeepSpeed configuration: it must be an object with `zero_optimization`"
        )
    return config


def cpu_variant(config: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The same configuration without the parts that need a GPU: overlapping streams, and offloading to the
    CPU."""
    zero = config["zero_optimization"]
    assert isinstance(zero, dict)
    kept = {key: value for key, value in zero.items() if key not in OFFLOAD}
    return {**config, "zero_optimization": {**kept, "overlap_comm": False}}
