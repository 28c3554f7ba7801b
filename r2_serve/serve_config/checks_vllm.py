"""What vLLM would refuse, or get wrong in silence, when a replica of a model starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator

from r2_serve.config import VllmEngineConfig
from r2_serve.engines.vllm_arguments import known_arguments
from r2_serve.engines.vllm_parsers import REGISTRIES, known_parsers
from r2_serve.serve_config.applications import MODEL, ApplicationEntry, ServeFile
from r2_serve.serve_config.defaults import default_gpus
from r2_serve.serve_config.document import KeyPath, Problem, suggestion

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `max_lora_rank`. Source: vLLM 0.29, `vllm/config/lora.py`, MaxLoRARanks."""
VLLM_GPU_MEMORY = 0.92
"""Default of `gpu_memory_utilization`, a share of the whole GPU. Source: vLLM 0.29,
`vllm/config/cache.py`."""
VLLM_AT_LEAST_1 = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_loras",
    "max_num_seqs",
    "max_num_batched_tokens",
)
"""Whole numbers of at least 1. Source: vLLM 0.29, `vllm/config/{parallel,lora,scheduler}.py`."""


def check_gpus(file: ServeFile) -> Iterator[Problem]:
    """vLLM without a GPU, with too few of them, or with more of a GPU's memory than its share of the GPU."""
    for app, config in _vllm_apps(file):
        path = (*app.path, "args", "engine", "engine_kwargs")
        if _num_gpus(app, config) == 0:
            message = "vLLM without a GPU: set `ray_actor_options: {num_gpus: 1}` (fine for vLLM's CPU build)"
            yield file.warning(app.path_of(MODEL), message)
            continue
        yield from _memory_faults(file, app, config, path)
        yield from _parallel_faults(file, app, config, path)


def _memory_faults(
    file: ServeFile, app: ApplicationEntry, config: VllmEngineConfig, path: KeyPath
) -> Iterator[Problem]:
    gpus, kwargs = _num_gpus(app, config), config.engine_kwargs
    share = _number(kwargs.get("gpu_memory_utilization", VLLM_GPU_MEMORY))
    if gpus < 1 and share is not None and gpus < share <= 1 and not kwargs.get("kv_cache_memory_bytes"):
        default = "" if "gpu_memory_utilization" in kwargs else " (the default of gpu_memory_utilization)"
        yield file.error(
            (*path, "gpu_memory_utilization"),
            f"vLLM takes {share:g}{default} of the GPU's memory, but a replica has num_gpus {gpus:g}: "
            f"another replica on the same GPU would find too little; set at most {gpus:g}",
        )


def _parallel_faults(
    file: ServeFile, app: ApplicationEntry, config: VllmEngineConfig, path: KeyPath
) -> Iterator[Problem]:
    gpus, kwargs = _num_gpus(app, config), config.engine_kwargs
    sizes = [_number(kwargs.get(f"{kind}_parallel_size", 1)) or 1 for kind in ("tensor", "pipeline")]
    needed = math.prod(sizes)
    product = f"tensor_parallel_size {sizes[0]:g} x pipeline_parallel_size {sizes[1]:g}"
    key = (*path, "tensor_parallel_size" if sizes[0] > 1 else "pipeline_parallel_size")
    bundles = _gpus_of_bundles(app)
    if kwargs.get("nnodes", 1) != 1 or needed == 1:
        return
    if needed > math.ceil(gpus):
        remedy = (
            f"set `placement_group_bundles` with {needed:g} bundles of `GPU: 1`"
            if bundles
            else f"set `ray_actor_options: {{num_gpus: {needed:g}}}`"
        )
        has = f"its placement group holds {gpus:g}" if bundles else f"a replica has num_gpus {gpus:g}"
        yield file.error(key, f"{product} needs {needed:g} GPUs, but {has}: {remedy}")
    elif bundles and kwargs.get("distributed_executor_backend") in (None, "ray"):
        yield from _bundle_faults(file, app, product, needed, _actor_gpus(app, config))


def _bundle_faults(
    file: ServeFile, app: ApplicationEntry, product: str, needed: float, own: float
) -> Iterator[Problem]:
    """vLLM starts a Ray actor with one GPU per bundle of a placement group, beside the replica, which takes
    `own` GPUs.

    Source: vLLM 0.29, `vllm/v1/executor/ray_utils.py`, `initialize_ray_cluster`.
    """
    bundles, path = _gpus_of_bundles(app), (*app.path_of(MODEL), "placement_group_bundles")
    if too_large := next((amount for amount in bundles if amount > 1), None):
        message = f"vLLM's Ray workers take one GPU per bundle, got a bundle with GPU {too_large:g}: write "
        yield file.error(path, f"{message}{needed:g} bundles of `GPU: 1`, or no placement group and num_gpus")
        return
    num = sum(amount == 1 for amount in bundles)
    if num - own < needed:
        yield file.error(
            path,
            f"{product} needs {needed:g} bundles of `GPU: 1` for vLLM's workers, got {num}, of which the "
            f"replica itself takes num_gpus {own:g}: set `num_gpus: 0` and {needed:g} such bundles",
        )


def check_vllm(file: ServeFile) -> Iterator[Problem]:
    """Engine arguments that vLLM does not know, or refuses when it starts."""
    for app, config in _vllm_apps(file):
        for key, value in config.engine_kwargs.items():
            fault = _vllm_fault(key, value)
            if fault is not None:
                yield file.error((*app.path, "args", "engine", "engine_kwargs", key), fault)
        for setting in REGISTRIES:
            name, known = getattr(config, setting), known_parsers(setting)
            if name is not None and known and name not in known:
                message = f"the installed vLLM has no parser {name!r}{suggestion(name, known)}"
                yield file.error((*app.path, "args", "engine", setting), message)


def check_contexts(file: ServeFile) -> Iterator[Problem]:
    """Cards that promise more context than the engine of their application was given."""
    limits = {app.name: config.engine_kwargs.get("max_model_len") for app, config in _vllm_apps(file)}
    cards = file.router.models if file.router else ()
    for path, name, engine in file.served():
        limit = limits.get(engine.app)
        card = next(card for card in cards if card.name == name)
        promised = card.context_tokens
        if type(limit) is int and 0 < limit < promised:
            is_given = "context_tokens" in card.model_fields_set
            default = "" if is_given else " (the default)"
            yield file.error(
                (*path, "context_tokens"),
                f"got {promised}{default}, but application {engine.app!r} runs with max_model_len {limit}: "
                f"longer prompts would be sent and refused; set context_tokens to at most {limit}",
            )


def _vllm_fault(key: str, value: object) -> str | None:
    known = known_arguments()
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "its fields are those of `vllm serve --help`"
        return f"vLLM has no engine argument {key!r}; {hint}"
    if key == "gpu_memory_utilization":
        share = _number(value)
        if share is None or not 0 < share <= 1:
            return f"got {value!r}, expected a share of the GPU's memory, above 0 and at most 1, such as 0.9"
    if key == "max_lora_rank" and (isinstance(value, bool) or value not in VLLM_LORA_RANKS):
        fitting = next(
            (rank for rank in VLLM_LORA_RANKS if rank >= (_number(value) or 1)), VLLM_LORA_RANKS[-1]
        )
        return f"got {value!r}, expected one of {', '.join(map(str, VLLM_LORA_RANKS))}: write {fitting}"
    if key in VLLM_AT_LEAST_1 and (type(value) is not int or value < 1):
        return f"got {value!r}, expected a whole number of at least 1"
    return None


def _vllm_apps(file: ServeFile) -> Iterator[tuple[ApplicationEntry, VllmEngineConfig]]:
    for app in file.model_apps:
        config = file.model_configs.get(app.name)
        if config is not None and isinstance(config.engine, VllmEngineConfig):
            yield app, config.engine


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _num_gpus(app: ApplicationEntry, config: VllmEngineConfig) -> float:
    """GPUs of one replica of the model, also those that a placement group holds for its workers."""
    return sum(_gpus_of_bundles(app)) if _gpus_of_bundles(app) else _actor_gpus(app, config)


def _gpus_of_bundles(app: ApplicationEntry) -> list[float]:
    """GPUs of each bundle of the placement group; empty without one."""
    bundles = app.option(MODEL, "placement_group_bundles")
    found = bundles if isinstance(bundles, list) else []
    return [_number(bundle.get("GPU")) or 0 for bundle in found if isinstance(bundle, dict)]


def _actor_gpus(app: ApplicationEntry, config: VllmEngineConfig) -> float:
    options = app.option(MODEL, "ray_actor_options")
    if options is None:
        return default_gpus(config)
    return (_number(options.get("num_gpus")) or 0) if isinstance(options, dict) else 0
