"""The settings of adapters that a local model takes while it runs."""

from __future__ import annotations

from pydantic import Field

from r2_serve.config.engines import Adapters, Config


class ModelTunables(Config):
    """`user_config` of a local model's `Model` deployment, which changes live."""

    adapters: Adapters = Field(default={})
    """Adapters that the engine holds beyond those it started with."""


class AdapterLoad(Config):
    """`args` of the short-lived application that loads an adapter for `r2-serve publish`."""

    app: str
    """The model's application."""
    name: str
    """The adapter's name."""
    path: str
    """The adapter's directory, on the nodes of the model's replicas."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for all replicas together; loading a large adapter from a network disk takes minutes."""
