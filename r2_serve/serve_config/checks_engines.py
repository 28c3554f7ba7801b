"""Local models: their numbers, checkpoints and adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from r2_serve.adapters import MANIFEST, check_adapter, read_adapter
from r2_serve.engines import resolve_checkpoint
from r2_serve.errors import ConfigError
from r2_serve.serve_config.applications import MODEL, ServeFile
from r2_serve.serve_config.document import EXPONENT, KeyPath, Problem, suggestion
from r2_serve.types import ModelCard

PASSED_ON = ("engine_kwargs", "extra_body")
"""Sections whose content goes unchanged to a library or a provider."""


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
    for place, config in file.routing.routers if file.routing else ():
        for stage, section in (("decomposer", config.decomposer), ("allocator", config.allocator)):
            known = {name for _, name, _ in _adapter_directories(file, apps.get(section.model, ""))}
            if section.adapter is not None and section.adapter not in known:
                path = (*file.routing_path, *place, stage, "adapter")
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
