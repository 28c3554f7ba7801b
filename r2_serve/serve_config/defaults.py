"""Values that a deployment of ours gets where its entry in the config file names none.

`r2_serve.app` passes them to Ray Serve; checks and counts of the resources of a config use the same values.
"""

from __future__ import annotations

from collections.abc import Mapping

from r2_serve.config import ModelServerConfig, VllmEngineConfig

SHUTDOWN_S = 150.0
"""Seconds for which a stopping replica may finish its requests: the default `limits.deadline_s` and a quarter
of it. Ray Serve's own 20 s would cut long replies off."""
LIGHT_CPUS = 0.1
"""CPUs that Ray counts for a replica which waits for models nearly all the time.

With Ray Serve's own default of 1 a router of three deployments would find no room on two cores. The number
places replicas and limits nothing: a busy replica uses a whole core if one is free.
"""
SERVE_CPUS = 1.0
"""CPUs that Ray Serve counts for any other replica, and for each one whose `ray_actor_options` in the file
name no `num_cpus`."""
ONGOING = 64
"""Calls that a replica of a model takes at once, on engines other than vLLM; the router works on as many."""
VLLM_SEQUENCES = 256
"""Sequences that `vllm serve` decodes at once on a card of less than 70 GiB, if `max_num_seqs` is not given.
It takes 1,024 on larger cards: then write `max_ongoing_requests`. Source: vLLM 0.29, `get_batch_defaults`."""
_LIGHT_ENGINES = ("numpy", "recorded", "scripted")


def default_cpus(server: ModelServerConfig | None) -> float:
    """CPUs of a replica of `Model` with `server`, or of Router, Decomposer and Allocator for None."""
    return LIGHT_CPUS if server is None or server.engine.kind in _LIGHT_ENGINES else SERVE_CPUS


def cpus_of(actor_options: Mapping[str, object] | None, server: ModelServerConfig | None) -> float:
    """CPUs of a replica whose entry in the file has these `ray_actor_options`.

    Options in the file replace all of those of the code (Ray Serve 2.60, `override_deployment_info`).
    """
    if actor_options is None:
        return default_cpus(server)
    num_cpus = actor_options.get("num_cpus", SERVE_CPUS)
    return float(num_cpus) if isinstance(num_cpus, int | float) else SERVE_CPUS


def default_ongoing(server: ModelServerConfig) -> int:
    """Calls that a replica of `Model` takes at once: as many as the engine decodes, so that none waits
    outside while it has room.
    """
    if not isinstance(server.engine, VllmEngineConfig):
        return ONGOING
    given = server.engine.engine_kwargs.get("max_num_seqs")
    return given if isinstance(given, int) else VLLM_SEQUENCES
