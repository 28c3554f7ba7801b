"""DeepSpeed's ZeRO configurations: the shipped ones for a 7B model with LoRA, a user's own, and what a CPU needs of either.

Not DeepSpeed itself, which only workers import. docs/training.md says what each value is for, as JSON has no comments.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from r2_serve.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
OFFLOAD = ("offload_optimizer", "offload_param")


def read_config(name: str | Path) -> dict[str, Any]:
    """A shipped configuration (`zero2`, `zero3`) or a file. Raises: ConfigError where it is no DeepSpeed configuration."""
    path = CONFIGS / f"{name}.json" if name in ("zero2", "zero3") else Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read the DeepSpeed configuration {path}: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"the DeepSpeed configuration {path} is not JSON: {e}") from e
    if not isinstance(config, dict) or "zero_optimization" not in config:
        raise ConfigError(
            f"{path} is no DeepSpeed configuration: expected a JSON object with `zero_optimization`"
        )
    return config


def cpu_variant(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration without what needs a GPU: overlapping streams, and moving to the CPU what is there already."""
    config = copy.deepcopy(config)
    zero = config["zero_optimization"]
    zero["overlap_comm"] = False
    for key in OFFLOAD:
        zero.pop(key, None)
    return config
