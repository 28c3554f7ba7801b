"""Values that a deployment of ours gets where its entry in the config file names none.

`r2_serve.app` passes them to Ray Serve; checks and counts of the resources of a config use the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from r2_serve.config import ModelServerConfig, RouterConfig, VllmEngineConfig
from r2_serve.config.engines import LocalEngines
from r2_serve.serve_config.applications import ALLOCATOR, DECOMPOSER, MODEL, ROUTER
from r2_serve.serve_config.document import YamlMapping

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
STAGE_ONGOING = 256
"""Queries that a replica of Decomposer or Allocator takes at once. It waits for its model nearly all the
time."""
SPARE_REQUESTS = 64
"""Room for health checks and metrics on top of the router's own queue, which refuses with proper error
bodies."""
UPSCALE_DELAY_S = 10
"""Seconds for which more calls than the target must last before a replica is added: longer than a burst."""
DOWNSCALE_DELAY_S = 300
"""Seconds for which fewer calls must last before one is removed: a model on a GPU takes minutes to start."""
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


def default_gpus(engine: LocalEngines) -> int:
    """GPUs of a replica of `Model`: as many as vLLM spreads it over; the other engines take none."""
    if not isinstance(engine, VllmEngineConfig):
        return 0
    given = engine.engine_kwargs
    sizes = (given.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return math.prod(size for size in sizes if isinstance(size, int))


def default_options(config: RouterConfig | ModelServerConfig) -> dict[str, dict[str, object]]:
    """Options of Ray Serve for each deployment of an application with these `args`."""
    most = config.max_replicas
    if isinstance(config, ModelServerConfig):
        at_once, gpus = default_ongoing(config), default_gpus(config.engine)
        takes = {"num_cpus": default_cpus(config), **({"num_gpus": gpus} if gpus else {})}
        return {MODEL: _options(at_once, takes, most, target=at_once // 4)}
    light, server = {"num_cpus": LIGHT_CPUS}, config.server
    room = server.max_running + server.max_queued + SPARE_REQUESTS
    stage = _options(STAGE_ONGOING, light, most, target=STAGE_ONGOING // 2)
    router = _options(room, light, most, target=server.max_running * 3 // 4)
    return {ROUTER: router, DECOMPOSER: stage, ALLOCATOR: stage}


def _options(at_once: int, takes: Mapping[str, float], most: int, *, target: int) -> dict[str, object]:
    """`target` is the number of calls per replica above which there is one more, and at most `most`."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": most,
        "target_ongoing_requests": max(target, 1),
        "upscale_delay_s": UPSCALE_DELAY_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
    }
    more = {"autoscaling_config": scaling} if most > 1 else {}
    return {"max_ongoing_requests": at_once, "ray_actor_options": dict(takes), **more}


def filled(entries: Sequence[YamlMapping], config: RouterConfig | ModelServerConfig) -> list[YamlMapping]:
    """The `deployments` of an application, with the default scaling and GPUs where they name none.

    Counts of replicas and of nodes read them. `num_cpus` alone stays out: it is a share, no demand.
    """
    on_gpus = isinstance(config, ModelServerConfig) and default_gpus(config.engine) > 0
    keys = ("autoscaling_config", *(("ray_actor_options",) if on_gpus else ()))
    found = {str(entry.get("name", "")): dict(entry) for entry in entries}
    for name, options in default_options(config).items():
        if known := {key: options[key] for key in keys if key in options}:
            found[name] = {"name": name, **known, **found.get(name, {})}
    return list(found.values())
