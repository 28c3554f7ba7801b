"""Which keys of providers the environment lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import typer

from r2_serve.config import HostedEngineConfig, ModelConfig


def warn_of_unset_keys(models: Iterable[ModelConfig]) -> None:
    """Prints a line for each key that is missing, as the router starts without it too."""
    for warning in unset_keys(models):
        typer.secho(f"warning: {warning}", fg="yellow")


def unset_keys(models: Iterable[ModelConfig], environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What to say of each variable that is not set: the models that cannot be asked without it."""
    waiting: dict[str, list[str]] = {}
    for model in models:
        variable = model.engine.api_key_env if isinstance(model.engine, HostedEngineConfig) else None
        if variable and not environment.get(variable, "").strip():
            waiting.setdefault(variable, []).append(model.name)
    for variable, names in waiting.items():
        yield f"{variable} is not set, so no call of {', '.join(names)} will succeed: set it and start again"
