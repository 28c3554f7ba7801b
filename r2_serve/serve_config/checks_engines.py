"""Local models: their GPUs, their checkpoints and adapters, and what vLLM would refuse when a replica
starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from r2_serve.adapters import MANIFEST, check_adapter, read_adapter
from r2_serve.config import VllmEngineConfig
from r2_serve.engines import resolve_checkpoint
from r2_serve.engines.vllm_parsers import REGISTRIES, known_parsers
from r2_serve.errors import ConfigError
from r2_serve.serve_config.applications import MODEL, ApplicationEntry, ServeFile
from r2_serve.serve_config.document import EXPONENT, KeyPath, Problem, suggestion
from r2_serve.types import ModelCard

PASSED_ON = ("engine_kwargs", "extra_body")
"""Sections whose content goes unchanged to a library or a provider."""
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


# -- GPUs and vLLM --------------------------------------------------------------------------------------


def check_gpus(file: ServeFile) -> Iterator[Problem]:
    """vLLM without a GPU, or with more of a GPU's memory than its share of the GPU."""
    for app, config in _vllm_apps(file):
        gpus, path = _num_gpus(app), (*app.path, "args", "engine", "engine_kwargs")
        if gpus == 0:
            message = "vLLM without a GPU: set `ray_actor_options: {num_gpus: 1}` (fine for vLLM's CPU build)"
            yield file.warning(app.path_of(MODEL), message)
            continue
        kwargs = config.engine_kwargs
        share = _number(kwargs.get("gpu_memory_utilization", VLLM_GPU_MEMORY))
        if gpus < 1 and share is not None and gpus < share <= 1 and not kwargs.get("kv_cache_memory_bytes"):
            message = f"vLLM takes {share:g} of the GPU's memory, but a replica has num_gpus {gpus:g}: "
            yield file.warning(
                (*path, "gpu_memory_utilization"),
                f"{message}another replica on the same GPU would find too little; set at most {gpus:g}",
            )
        sizes = [_number(kwargs.get(f"{kind}_parallel_size", 1)) or 1 for kind in ("tensor", "pipeline")]
        needed = math.prod(sizes)
        if needed > math.ceil(gpus) and kwargs.get("nnodes", 1) == 1:
            product = f"tensor_parallel_size {sizes[0]:g} x pipeline_parallel_size {sizes[1]:g}"
            yield file.error(
                (*path, "tensor_parallel_size" if sizes[0] > 1 else "pipeline_parallel_size"),
                f"{product} needs {needed:g} GPUs, but a replica has num_gpus {gpus:g}: "
                f"set `ray_actor_options: {{num_gpus: {needed:g}}}`",
            )


def check_vllm(file: ServeFile) -> Iterator[Problem]:
    """Engine arguments that vLLM refuses when it starts."""
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


def check_numbers(file: ServeFile) -> Iterator[Problem]:
    """Numbers such as 2e-5 in sections that are passed on as they are: `serve deploy` takes them for text."""
    for app in file.applications:
        yield from _texts_for_serve(file, (*app.path, "args"), app.options.get("args"), is_passed_on=False)


def _texts_for_serve(
    file: ServeFile, path: KeyPath, value: object, *, is_passed_on: bool
) -> Iterator[Problem]:
    if isinstance(value, dict):
        for key, item in value.items():
            is_below = is_passed_on or key in PASSED_ON
            yield from _texts_for_serve(file, (*path, key), item, is_passed_on=is_below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts_for_serve(file, (*path, index), item, is_passed_on=is_passed_on)
    elif is_passed_on and isinstance(value, float):
        node = file.document.node(path)
        if isinstance(node, yaml.ScalarNode) and EXPONENT.fullmatch(node.value):
            digits, _, exponent = node.value.lower().partition("e")
            sign = "" if exponent.startswith(("+", "-")) else "+"
            message = f"`serve deploy` reads {node.value} as text: write {digits}.0e{sign}{exponent}"
            yield file.warning(path, message)


def _vllm_fault(key: str, value: object) -> str | None:
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


def _num_gpus(app: ApplicationEntry) -> float:
    """GPUs of one replica of the model, also those that a placement group holds for its workers."""
    bundles = app.option(MODEL, "placement_group_bundles")
    if isinstance(bundles, list) and bundles:
        return sum(_number(bundle.get("GPU")) or 0 for bundle in bundles if isinstance(bundle, dict))
    options = app.option(MODEL, "ray_actor_options")
    return (_number(options.get("num_gpus")) or 0) if isinstance(options, dict) else 0


# -- checkpoints and adapters ---------------------------------------------------------------------------


def check_embedded_models(file: ServeFile) -> Iterator[Problem]:
    """Names of shipped models that do not exist."""
    for app in file.model_apps:
        config = file.model_configs.get(app.name)
        for key in ("path", "model"):
            try:
                resolve_checkpoint(str(getattr(config.engine, key, "")) if config else "")
            except ConfigError as e:
                yield file.warning((*app.path, "args", "engine", key), str(e))


def check_adapters(file: ServeFile) -> Iterator[Problem]:
    """Adapters that the routing names and no model loads."""
    apps = {name: engine.app for _, name, engine in file.served()}
    for virtual, config in file.routing.virtual_models.items() if file.routing else ():
        for stage, section in (("decomposer", config.decomposer), ("allocator", config.allocator)):
            known = {name for _, name, _ in _adapter_directories(file, apps.get(section.model, ""))}
            if section.adapter is not None and section.adapter not in known:
                path = (*file.routing_path, "virtual_models", virtual, stage, "adapter")
                message = f"{section.model!r} loads no adapter {section.adapter!r}"
                yield file.error(path, message + suggestion(section.adapter, known))


def check_adapter_files(file: ServeFile) -> Iterator[Problem]:
    """Each adapter's directory, and its manifest against the cards that its application serves."""
    models = file.router.models if file.router else ()
    for app in file.model_apps:
        cards = [m for m in models if m.engine.kind == "served" and m.engine.app == app.name]
        for path, name, text in _adapter_directories(file, app.name):
            directory = Path(text)
            if not directory.is_dir():
                message = f"no directory {directory} on this machine; every node that runs the model needs it"
                yield file.warning(path, message)
            elif (directory / MANIFEST).is_file() and (fault := _adapter_fault(name, directory, cards)):
                yield file.error(path, fault)


def _adapter_fault(name: str, directory: Path, cards: Sequence[ModelCard]) -> str | None:
    """Why the adapter in `directory` is not what the file takes it for."""
    try:
        manifest = read_adapter(directory)
        if manifest.name != name:
            return f"{directory} holds adapter {manifest.name!r}, not {name!r}: call it by its own name"
        if cards:
            check_adapter(manifest, next((card for card in cards if card.name == manifest.base), cards[0]))
    except ConfigError as e:
        return e.message
    return None


def _adapter_directories(file: ServeFile, app_name: str) -> Iterator[tuple[KeyPath, str, str]]:
    """Path, name and directory of the adapters that an application loads at its start or by its
    `user_config`."""
    app = next((app for app in file.model_apps if app.name == app_name), None)
    if app is None:
        return
    config, tunables = file.model_configs.get(app_name), file.tunables.get(app_name)
    loaded: dict[KeyPath, Mapping[str, str]] = {
        (*app.path, "args", "engine", "adapters"): config.engine.adapters if config else {},
        (*app.path_of(MODEL), "user_config", "adapters"): tunables.adapters if tunables else {},
    }
    for path, adapters in loaded.items():
        yield from (((*path, name), name, directory) for name, directory in adapters.items())
