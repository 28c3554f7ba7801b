"""Which keys of providers the environment lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from r2_serve.config import HostedEngineConfig, ModelConfig


def unset_keys(models: Iterable[ModelConfig], environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """For each variable that is not set, the models that cannot be asked without it."""
    waiting: dict[str, list[str]] = {}
    for model in models:
        variable = model.engine.api_key_env if isinstance(model.engine, HostedEngineConfig) else None
        if variable and not environment.get(variable, "").strip():
            waiting.setdefault(variable, []).append(model.name)
    for variable, names in waiting.items():
        yield f"{variable} is not set, so no call of {', '.join(names)} will succeed: set it and start again"
