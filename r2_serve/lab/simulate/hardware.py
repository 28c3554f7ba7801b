"""What a Serve config does not say: speeds of real models, prices of GPUs, the cluster, limits of providers, overheads.

One small YAML file, `--hardware`. Without it: scripted models at their own speed, machines without end, no overheads, free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from r2_serve.config import Config, SpeedConfig
from r2_serve.serve_config.sections import read_file


class Overheads(Config):
    """Constants between the events. The defaults are those of an idle system; measure your own (docs/simulation.md)."""

    http_s: float = Field(default=0.0, ge=0)
    """Of a request, all told: proxy, parsing, planning's own arithmetic, writing the reply."""
    hop_s: float = Field(default=0.0, ge=0)
    """Of a call from one deployment to another, there and back."""
    replica_start_s: float = Field(default=0.0, ge=0)
    """From the autoscaler's decision to a new replica's first line of code: placement, process, imports. `start_s` comes on top."""
    replica_stop_s: float = Field(default=2.0, ge=0)
    """Shortest time that a replica takes to stop, idle or not (Serve's `graceful_shutdown_wait_loop_s`)."""
    control_interval_s: float = Field(default=0.1, gt=0)
    """Between decisions of the autoscaler (`RAY_SERVE_CONTROL_LOOP_INTERVAL_S`, and what a round takes)."""


class Nodes(Config):
    """Machines that come when GPUs are missing and go when none is used."""

    gpus_per_node: float = Field(gt=0)
    min_nodes: int = Field(default=0, ge=0)
    max_nodes: int = Field(ge=1)
    boot_s: float = Field(default=0.0, ge=0)
    """From the request to a node that takes replicas."""
    idle_timeout_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}")
        return self


class Cluster(Config):
    """GPUs that replicas are placed on; a replica that asks for none always finds a place."""

    gpus: float | None = Field(default=None, gt=0)
    """A fixed number, up from the start; None, without `nodes`: as many as are asked for."""
    nodes: Nodes | None = None
    gpu_usd_per_hour: float = Field(default=0.0, ge=0)
    """Paid from a replica's placement until it has stopped; with `nodes`, for each GPU of a node that is up or boots."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.gpus is not None and self.nodes is not None:
            raise ValueError("gpus and nodes are two ways to say what there is: give one")
        return self


class HostedSpeed(Config):
    """A provider, seen from outside."""

    ttft_s: float = Field(ge=0)
    """To the first token, at the median."""
    tokens_per_s: float = Field(gt=0)
    """Of the reply, at the median."""
    spread: float = Field(default=0.0, ge=0, le=3)
    """Standard deviation of the logarithm of a call's time (log-normal); 0: always the median."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Of prompt and reply. Beyond either limit a call is refused with the time after which it may come again."""
    burst_s: float = Field(default=1.0, gt=0)
    """A limit is a bucket that holds as many seconds' worth."""


class ModelHardware(Config):
    """Of one model of the pool."""

    speed: SpeedConfig | None = None
    """Of a local model; takes the place of a scripted one's own."""
    hosted: HostedSpeed | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.speed is None) == (self.hosted is None):
            raise ValueError("give `speed` (a local model) or `hosted` (a model behind an API), one of them")
        return self


class Hardware(Config):
    """See the module's text."""

    cluster: Cluster = Cluster()
    overheads: Overheads = Overheads()
    tokens_per_word: float = Field(default=1.0, gt=0)
    """Workloads count words, as scripted models do; about 1.3 for real tokenizers and English."""
    models: dict[str, ModelHardware] = Field(default_factory=dict)
    """By name of the pool model."""


def load_hardware(path: Path) -> Hardware:
    """Raises: ConfigError listing every error with its line."""
    return read_file(path, Hardware)
