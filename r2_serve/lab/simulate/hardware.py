"""The facts that a Serve config does not hold: speeds of real models, GPU prices, the cluster, provider
limits, overheads.

They stand in one small YAML file, `--hardware`. Without it, scripted models run at their own speed on
unlimited free machines without overheads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from r2_serve.config import Config, SpeedConfig
from r2_serve.serve_config.sections import read_file


class Overheads(Config):
    """Constant times between events. The defaults suit an idle system; docs/simulation.md measures them."""

    http_s: float = Field(default=0.0, ge=0)
    """Time of a request outside its calls: proxy, parsing, planning, writing the reply."""
    hop_s: float = Field(default=0.0, ge=0)
    """Time of a call from one deployment to another and back."""
    replica_start_s: float = Field(default=0.0, ge=0)
    """Time from the autoscaler's decision to a replica's first line of code, before its `start_s`."""
    replica_stop_s: float = Field(default=2.0, ge=0)
    """Shortest time that a replica takes to stop, idle or not (Serve's `graceful_shutdown_wait_loop_s`)."""
    control_interval_s: float = Field(default=0.1, gt=0)
    """Time between the autoscaler's decisions (Serve's control loop interval and a round's length)."""


class Nodes(Config):
    """Machines that come when GPUs are missing and go when none of theirs is used."""

    gpus_per_node: float = Field(gt=0)
    min_nodes: int = Field(default=0, ge=0)
    max_nodes: int = Field(ge=1)
    boot_s: float = Field(default=0.0, ge=0)
    """Time from the request to a node that takes replicas."""
    idle_timeout_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}")
        return self


class Cluster(Config):
    """GPUs that replicas are placed on. A replica that asks for none always finds a place."""

    gpus: float | None = Field(default=None, gt=0)
    """A fixed number that is up from the start. None without `nodes` means as many as are asked for."""
    nodes: Nodes | None = None
    packs: bool = False
    """True places a replica on the fullest node with room (RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1), false
    on the emptiest, as Ray Serve does by default."""
    gpu_usd_per_hour: float = Field(default=0.0, ge=0)
    """Price of a replica's GPU until it has stopped; with `nodes`, of each GPU that is up or boots."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.gpus is not None and self.nodes is not None:
            raise ValueError("gpus and nodes are two ways to say what there is: give one")
        return self


class HostedSpeed(Config):
    """A provider, seen from outside."""

    ttft_s: float = Field(ge=0)
    """Median time to the first token."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Median speed of the reply; not with `traces`."""
    traces: str | None = None
    """Traces of a router (file or directory), relative to this file. A call takes as long as one that the
    model answered there with about as many tokens, drawn at random; as many calls fail as did there."""
    spread: float = Field(default=0.0, ge=0, le=3)
    """Standard deviation of the logarithm of a call's time (log-normal); 0 gives every call the median."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Limit on prompt and reply tokens. A call beyond a limit is refused with a time to wait."""
    burst_s: float = Field(default=1.0, gt=0)
    """Seconds' worth of a limit that may be used at once."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.tokens_per_s is None) == (self.traces is None):
            raise ValueError("give `tokens_per_s` or `traces`, one of them")
        return self


class ModelHardware(Config):
    """Speed of one pool model."""

    speed: SpeedConfig | None = None
    """Speed of a local model; it replaces a scripted model's own."""
    hosted: HostedSpeed | None = None
    cold_starts: str | None = None
    """File or directory of logs with cold starts of the model's application, relative to this file. Each
    simulated start on a node that is up takes as long as one of them, drawn at random, in place of
    `replica_start_s` and `start_s`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.hosted is not None and (self.speed is not None or self.cold_starts is not None):
            raise ValueError("`hosted` (a model behind an API) has no `speed` and no `cold_starts`")
        if self.speed is None and self.hosted is None and self.cold_starts is None:
            raise ValueError(
                "give `speed` or `cold_starts` (a local model), or `hosted` (a model behind an API)"
            )
        return self


class Hardware(Config):
    """A hardware file."""

    cluster: Cluster = Cluster()
    overheads: Overheads = Overheads()
    tokens_per_word: float = Field(default=1.0, gt=0)
    """Workloads count words, as scripted models do; real tokenizers need about 1.3 for English."""
    models: dict[str, ModelHardware] = Field(default_factory=dict)
    """Speeds by name of the pool model."""


def load_hardware(path: Path) -> Hardware:
    """Reads a hardware file; the names in it are relative to it. Raises: ConfigError listing every error."""
    hardware = read_file(path, Hardware)
    models = {name: _located(model, path.parent) for name, model in hardware.models.items()}
    return hardware.model_copy(update={"models": models})


def _located(model: ModelHardware, directory: Path) -> ModelHardware:
    hosted, starts = model.hosted, model.cold_starts
    if hosted is not None and hosted.traces is not None:
        hosted = hosted.model_copy(update={"traces": str(directory / hosted.traces)})
    return model.model_copy(
        update={"hosted": hosted, "cold_starts": None if starts is None else str(directory / starts)}
    )
