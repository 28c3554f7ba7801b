"""What routing needs from the pool: words to choose by, a model that stands in, and one that is cheaper."""

from __future__ import annotations

from collections.abc import Iterator

from r2_serve.config import ModelConfig, RoutingConfig, with_engines
from r2_serve.serve_config.applications import ServeFile
from r2_serve.serve_config.document import KeyPath, Problem


def check_pool(file: ServeFile) -> Iterator[Problem]:
    """Models that an allocator chooses blindly, and models whose failures no other model could take over."""
    if file.router is None or file.router_app is None or file.routing is None:
        return
    by_name = {model.name: model for model in file.router.models}
    chosen, replaceable = _chosen_by_words(file.routing, by_name), _replaceable(file.routing)
    for index, model in enumerate(file.router.models):
        path = (*file.router_app.path, "args", "models", index)
        missing = _missing_words(model) if model.name in chosen else []
        if missing:
            by = "it" if len(missing) == 1 else "them"
            message = f"{model.name!r} has no {' and no '.join(missing)}: the allocator chooses by {by}"
            yield file.warning(path, message)
        if not model.fallbacks and model.name not in replaceable:
            message = f"no other model could answer when {model.name!r} fails: name one in `fallbacks`"
            yield file.warning(path, message)


def check_savings(file: ServeFile) -> Iterator[Problem]:
    """Virtual models with `plan: auto` that never split a query, as no model is cheaper than the default."""
    if file.router is None or file.routing is None:
        return
    by_name = {model.name: model for model in file.router.models}
    for name, virtual in file.routing.virtual_models.items():
        default = by_name.get(virtual.fallback_model)
        pool = [by_name[model] for model in virtual.pool if model in by_name]
        if virtual.plan != "auto" or default is None or len(pool) < 2:
            continue
        if not any(_is_cheaper(model, default) for model in pool):
            message = (
                f"no model of the pool is cheaper than {default.name!r}, so `plan: auto` never splits a "
            )
            message += "query: set the prices, or `plan: always`"
            yield file.warning((*file.routing_path, "virtual_models", name), message)


def _is_cheaper(model: ModelConfig, other: ModelConfig) -> bool:
    return model.usd_per_mtok_in < other.usd_per_mtok_in or model.usd_per_mtok_out < other.usd_per_mtok_out


def check_chat(file: ServeFile) -> Iterator[Problem]:
    """Models of virtual models that hold no conversation, such as models of embeddings."""
    if file.router is None or file.routing is None:
        return
    mute = {m.name for m in with_engines(file.router.models, file.model_configs) if "chat" not in m.abilities}
    for name, virtual in file.routing.virtual_models.items():
        path = (*file.routing_path, "virtual_models", name)
        named: list[tuple[KeyPath, str]] = [(("pool", i), model) for i, model in enumerate(virtual.pool)]
        named += [((stage, "model"), getattr(virtual, stage).model) for stage in ("decomposer", "allocator")]
        for place, model in named:
            if model in mute:
                message = f"{model!r} is not capable of chat, which every model of a virtual model needs"
                yield file.error((*path, *place), message)


def _chosen_by_words(routing: RoutingConfig, by_name: dict[str, ModelConfig]) -> set[str]:
    """Models of pools with a choice, where an instruct allocator reads about each; compact ones do not."""
    found: set[str] = set()
    for virtual in routing.virtual_models.values():
        allocator = by_name.get(virtual.allocator.model)
        if len(virtual.pool) > 1 and allocator is not None and allocator.codec == "instruct":
            found.update(virtual.pool)
    return found


def _missing_words(model: ModelConfig) -> list[str]:
    description = [] if model.description.strip() else ["`description`"]
    has_group = "group" in model.model_fields_set
    return description if has_group else [*description, f"`group` (so it counts as {model.group})"]


def _replaceable(routing: RoutingConfig) -> set[str]:
    """Models that others of their pool stand in for; decomposers and allocators, which can be spared."""
    found: set[str] = set()
    for virtual in routing.virtual_models.values():
        found.update(virtual.pool if len(virtual.pool) > 1 and virtual.fallbacks == "pool" else ())
        found |= {virtual.decomposer.model, virtual.allocator.model} - {*virtual.pool}
    return found
