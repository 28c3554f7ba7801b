"""The changes that an adapter needs, found from the config file and the manifest before anything is
touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r2_serve.adapters import BASE, MANIFEST, check_adapter, read_adapter
from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    ModelConfig,
    RolloutConfig,
    RouterConfig,
    RoutingConfig,
    VirtualModelConfig,
    VllmEngineConfig,
)
from r2_serve.config.prompts import prompts_sha256
from r2_serve.errors import ConfigError
from r2_serve.ops.publishing.config_file import Change, changed, with_adapter, with_rollout, with_route
from r2_serve.ops.publishing.trial import TrialShares
from r2_serve.serve_config import Problem, own_problems, parse_yaml
from r2_serve.serve_config.applications import ServeFile
from r2_serve.serve_config.document import YamlMapping, suggestion
from r2_serve.types import AdapterManifest

Module = Literal["decomposer", "allocator"]
_HOW_TO_LOAD = "`r2-serve publish` loads one"


@dataclass(frozen=True)
class Publication:
    """A new adapter, and the two next texts of the config file."""

    manifest: AdapterManifest
    directory: Path
    app: str
    router_app: str
    virtual_models: tuple[str, ...]
    replaced: tuple[str, ...]
    """The adapters that those virtual models used until now; `base` for the model itself."""
    dropped: tuple[str, ...]
    """Adapters that are unloaded."""
    loaded: str
    """The file's text in which the model has the adapter."""
    routed: str
    """The file's text in which the virtual models also use it, or try it."""
    shares: TrialShares | None = None
    """How the adapter is tried; None if the virtual models use it at once."""


@dataclass(frozen=True)
class Rollback:
    """A way back to adapters that are still loaded."""

    module: Module
    router_app: str
    moves: Mapping[str, tuple[str, str]]
    """The adapter before and after, by virtual model; `base` is the model itself."""
    routed: str
    """The next text of the config file."""


def plan_publication(
    text: str,
    directory: Path,
    *,
    virtual_models: Sequence[str] = (),
    keep: int = 2,
    shares: TrialShares | None = None,
) -> Publication:
    """The publication of the adapter in `directory`, for a config file with `text`.

    `keep` earlier adapters of its module stay loaded. With `shares` the adapter goes on trial; one that is
    loaded and unused, or on trial already, may do so again.

    Raises: ConfigError if the adapter does not fit, or the file has or would get an error.
    """
    manifest = read_adapter(directory)
    pool = Pool(text)
    card, app = pool.base_of(manifest)
    targets = pool.targets(manifest.module, card.name, virtual_models)
    pool.check_prompts(manifest, targets)
    loaded = pool.live_adapters(app)
    if manifest.name in pool.adapters(app) and not pool.may_be_tried(manifest, directory, targets, shares):
        back = f"`r2-serve rollback --module {manifest.module} --to {manifest.name}` routes to it"
        raise ConfigError(
            f"adapter {manifest.name!r} is loaded in {app!r} already: {back}; a new version needs a new name"
        )
    replaced = tuple(pool.module(name, manifest.module).adapter or BASE for name in targets)
    in_use = pool.in_use(app) | set(replaced)
    idle = [name for name in loaded if name not in in_use and pool.module_of(app, name) == manifest.module]
    room = max(keep - len(set(replaced) - {BASE}), 0)
    dropped = tuple(idle[: len(idle) - room] if room else idle)
    load = with_adapter(app, manifest.name, str(directory.resolve()), last=replaced, drop=dropped)
    routes = [pool.route_to(name, manifest, shares) for name in targets]
    routed = changed(text, load, *routes)
    Pool(routed)
    return Publication(
        manifest,
        directory.resolve(),
        app,
        pool.router_app,
        targets,
        replaced,
        dropped,
        loaded=changed(text, load),
        routed=routed,
        shares=shares,
    )


def plan_rollback(
    text: str, module: Module, *, to: str | None = None, virtual_models: Sequence[str] = ()
) -> Rollback:
    """The way back to adapter `to`, or to the one used before the present one.

    Raises: ConfigError if there is nothing to go back to, or it is not clear for which virtual model.
    """
    pool = Pool(text)
    targets = virtual_models or pool.with_adapter(module, to)
    pool.check_virtual_models(targets)
    moves = {
        name: (pool.module(name, module).adapter or BASE, to or pool.earlier(name, module))
        for name in targets
    }
    if len(set(moves.values())) > 1:
        listed = ", ".join(f"{name}: {old}" for name, (old, _) in moves.items())
        raise ConfigError(
            f"the virtual models use different adapters ({listed}): name one with --virtual-model"
        )
    for name, (old, new) in moves.items():
        pool.check_move(name, module, old, new)
    routes = [
        with_route(pool.router_app, name, module, None if new == BASE else new)
        for name, (_, new) in moves.items()
    ]
    routed = changed(text, *routes)
    Pool(routed)
    return Rollback(module, pool.router_app, moves, routed)


class Pool:
    """The config file's answers to the questions of a plan. Raises: ConfigError if the file has an error."""

    def __init__(self, text: str) -> None:
        document = parse_yaml(text)
        if isinstance(document, Problem):
            raise ConfigError(f"the config file: {document}")
        file, problems = own_problems(document, os.environ)
        errors = [f"  {problem}" for problem in problems if problem.severity == "error"]
        if errors:
            raise ConfigError("\n".join(["the config file has errors (r2-serve validate):", *errors]))
        assert file.router is not None and file.routing is not None and file.router_app is not None
        self._file: ServeFile = file
        self._router: RouterConfig = file.router
        self._routing: RoutingConfig = file.routing
        self.router_app = file.router_app.name

    @property
    def rollouts(self) -> dict[str, RolloutConfig]:
        """The candidates on trial, by virtual model."""
        return dict(self._routing.rollouts)

    @property
    def trace_dir(self) -> str | None:
        """The directory of traces; None if none are written."""
        return self._router.server.trace_dir

    @property
    def feedback_file(self) -> str | None:
        """The file of scores; None for the memory of the routers."""
        return self._router.server.feedback_file

    def may_be_tried(
        self, manifest: AdapterManifest, directory: Path, targets: Sequence[str], shares: TrialShares | None
    ) -> bool:
        """Whether a loaded adapter may go on trial: from the same directory, and used by no virtual model."""
        app = self.app_of(manifest.base)
        is_same = Path(self.adapters(app)[manifest.name]).resolve() == directory.resolve()
        virtual = self._routing.virtual_models.values()
        used = {section.adapter for v in virtual for section in (v.decomposer, v.allocator)}
        return shares is not None and is_same and manifest.name not in used

    def route_to(self, name: str, manifest: AdapterManifest, shares: TrialShares | None) -> Change:
        """The change by which a virtual model uses the adapter, or tries it. Raises: ConfigError."""
        if shares is None:
            self.check_no_trial(name)
            return with_route(self.router_app, name, manifest.module, manifest.name)
        return self.tried(name, manifest.name, {manifest.module: {"adapter": manifest.name}}, shares)

    def tried(self, name: str, candidate: str, change: YamlMapping, shares: TrialShares) -> Change:
        """The change that puts a candidate on trial for a virtual model, or gives it other shares.

        Raises: ConfigError if another one is on trial.
        """
        self.check_no_trial(name, candidate)
        present = self._routing.rollouts.get(name)
        return with_rollout(self.router_app, name, shares.rollout(candidate, change, present))

    def check_no_trial(self, name: str, candidate: str | None = None) -> None:
        """Raises: ConfigError if another candidate than this one is on trial for a virtual model."""
        present = self._routing.rollouts.get(name)
        if present is not None and present.candidate != candidate:
            raise ConfigError(
                f"candidate {present.candidate!r} is on trial for {name!r}: end that first "
                "(`r2-serve compare --act`, or `r2-serve rollback --candidate`)"
            )

    def base_of(self, manifest: AdapterManifest) -> tuple[ModelConfig, str]:
        """The model that the adapter is for, and its application."""
        adapter, names = f"adapter {manifest.name!r}", [model.name for model in self._router.models]
        if manifest.base not in names:
            close = suggestion(manifest.base, names)
            raise ConfigError(f"{adapter} is for base {manifest.base!r}, which the file does not have{close}")
        card = self._router.model(manifest.base)
        check_adapter(manifest, card)
        if card.engine.kind != "served":
            raise ConfigError(
                f"{card.name!r} is hosted ({card.engine.kind}): only local models take adapters"
            )
        app = card.engine.app
        engine = self._file.model_configs[app].engine
        if isinstance(engine, VllmEngineConfig):
            if manifest.kind != "lora":
                raise ConfigError(
                    f"{adapter} is a whole checkpoint, and vLLM takes LoRA: make it an application of its own"
                )
            if not (engine.engine_kwargs.get("enable_lora") or engine.adapters):
                raise ConfigError(
                    f"{app!r} runs vLLM without LoRA: set `enable_lora: true` in its engine_kwargs "
                    "and deploy that first"
                )
        return card, app

    def module(self, virtual_model: str, module: Module) -> DecomposerConfig | AllocatorConfig:
        virtual = self._routing.virtual_models[virtual_model]
        return virtual.decomposer if module == "decomposer" else virtual.allocator

    def check_prompts(self, manifest: AdapterManifest, targets: Sequence[str]) -> None:
        """The adapter must have learned the prompts that it will read."""
        for name in targets:
            if prompts_sha256(self._routing.virtual_models[name].prompts) != manifest.prompts_sha256:
                trained = "the built-in texts" if manifest.prompts_sha256 is None else "other texts"
                raise ConfigError(
                    f"adapter {manifest.name!r} was trained with {trained} than `prompts` of virtual model "
                    f"{name!r}: set the file that it was trained with, or train it with this one"
                )

    @property
    def virtual_models(self) -> tuple[str, ...]:
        """The names of all virtual models."""
        return tuple(self._routing.virtual_models)

    def virtual(self, name: str) -> VirtualModelConfig:
        """A virtual model."""
        return self._routing.virtual_models[name]

    def check_virtual_models(self, names: Sequence[str]) -> None:
        known = self._routing.virtual_models
        for name in names:
            if name not in known:
                raise ConfigError(f"no virtual model {name!r} in the file{suggestion(name, known)}")

    def targets(self, module: Module, base: str, asked: Sequence[str]) -> tuple[str, ...]:
        """The virtual models asked for, or else all whose `module` is the base."""
        self.check_virtual_models(asked)
        for name in asked:
            if (model := self.module(name, module).model) != base:
                raise ConfigError(
                    f"the {module} of virtual model {name!r} is {model!r}, "
                    f"but the adapter is for base {base!r}"
                )
        fitting = [name for name in self._routing.virtual_models if self.module(name, module).model == base]
        if not fitting:
            raise ConfigError(f"no virtual model has {base!r} as its {module}: nothing would use the adapter")
        return tuple(asked or fitting)

    def with_adapter(self, module: Module, to: str | None) -> tuple[str, ...]:
        """Virtual models that can go back: they use an adapter now, or their model has `to` loaded."""
        names = self._routing.virtual_models
        if to is None or to == BASE:
            found = tuple(name for name in names if self.module(name, module).adapter is not None)
            if not found:
                raise ConfigError(f"nothing to roll back: no virtual model uses an adapter for its {module}")
            return found
        loaded = {name: self.adapters(self.app_of(self.module(name, module).model)) for name in names}
        found = tuple(name for name in names if to in loaded[name])
        if not found:
            close = suggestion(to, {adapter for adapters in loaded.values() for adapter in adapters})
            raise ConfigError(f"no adapter {to!r} is loaded for any {module}{close}; {_HOW_TO_LOAD}")
        return found

    def app_of(self, model: str) -> str:
        """The application of a local model; empty for a hosted one."""
        engine = self._router.model(model).engine
        return engine.app if engine.kind == "served" else ""

    def live_adapters(self, app: str) -> dict[str, str]:
        """The adapters of `user_config`, the last used one at the end."""
        tunables = self._file.tunables.get(app)
        return dict(tunables.adapters) if tunables else {}

    def adapters(self, app: str) -> dict[str, str]:
        """The adapters that the application starts with, then those of `user_config`."""
        config = self._file.model_configs.get(app)
        return {**(config.engine.adapters if config else {}), **self.live_adapters(app)}

    def in_use(self, app: str) -> set[str]:
        """Adapters of `app` that some virtual model uses, or a candidate on trial."""
        sections = [
            section
            for _, virtual in self._routing.routers
            for section in (virtual.decomposer, virtual.allocator)
        ]
        return {
            section.adapter for section in sections if section.adapter and self.app_of(section.model) == app
        }

    def module_of(self, app: str, adapter: str) -> str | None:
        """The module that the adapter was trained as; None if it has no manifest here."""
        directory = Path(self.adapters(app)[adapter])
        return read_adapter(directory).module if (directory / MANIFEST).is_file() else None

    def earlier(self, virtual_model: str, module: Module) -> str:
        """The adapter used before the present one."""
        section = self.module(virtual_model, module)
        app = self.app_of(section.model)
        names = list(self.adapters(app))
        before = names[: names.index(section.adapter)] if section.adapter in names else []
        same = [name for name in before if self.module_of(app, name) == module]
        if not same:
            earliest = f"{section.adapter or BASE!r} is the earliest {module} adapter there is"
            raise ConfigError(
                f"nothing to roll back to: {earliest} (loaded: {', '.join(names) or 'none'}); "
                f"`--to {BASE}` goes back to the model itself"
            )
        return same[-1]

    def check_move(self, virtual_model: str, module: Module, old: str, new: str) -> None:
        """Raises: ConfigError if `new` is in use already, is not loaded, or was trained as the other
        module."""
        if old == new:
            raise ConfigError(f"the {module} of {virtual_model!r} is {new!r} already")
        if new == BASE:
            return
        app = self.app_of(self.module(virtual_model, module).model)
        if new not in self.adapters(app):
            close = suggestion(new, self.adapters(app))
            raise ConfigError(f"no adapter {new!r} is loaded in {app!r}{close}; {_HOW_TO_LOAD}")
        trained_as = self.module_of(app, new)
        if trained_as not in (None, module):
            raise ConfigError(f"adapter {new!r} was trained as {trained_as}, not as {module}")
