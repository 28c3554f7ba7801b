"""The applications of a Serve config, as far as they can be read.

Reading reports problems inside our own sections. `checks` reports conflicts between sections, and `reader`
problems of Ray Serve's own keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r2_serve.config import ModelServerConfig, ModelTunables, RouterConfig, RoutingConfig, ServedEngineConfig
from r2_serve.serve_config.document import Document, KeyPath, Problem, YamlMapping
from r2_serve.serve_config.sections import read_section

ROUTER_IMPORT_PATH, MODEL_IMPORT_PATH = "r2_serve.app:build", "r2_serve.app:build_model"
ROUTER, DECOMPOSER, ALLOCATOR, MODEL = "Router", "Decomposer", "Allocator", "Model"
"""Names of the deployments that `r2_serve.app` binds."""
DEPLOYMENTS = {ROUTER_IMPORT_PATH: (ROUTER, DECOMPOSER, ALLOCATOR), MODEL_IMPORT_PATH: (MODEL,)}
"""Deployments of each application that `r2_serve.app` builds."""
SERVE_AUTO_MAX_REPLICAS = 100
"""Most replicas with `num_replicas: auto`. Source: `ray.serve.config.AutoscalingConfig.default`."""


@dataclass(frozen=True)
class DeploymentEntry:
    """An item of `deployments`: options that replace those of the code."""

    path: KeyPath
    name: str
    options: YamlMapping


@dataclass(frozen=True)
class ApplicationEntry:
    """An item of `applications`. The kind `other` is not R2's, and is left alone."""

    path: KeyPath
    name: str
    kind: Literal["router", "model", "other"]
    options: YamlMapping
    deployments: tuple[DeploymentEntry, ...]

    def deployment(self, name: str) -> DeploymentEntry | None:
        return next((entry for entry in self.deployments if entry.name == name), None)

    def path_of(self, deployment: str) -> KeyPath:
        """The path of that deployment's entry, or of the application if it has none."""
        entry = self.deployment(deployment)
        return entry.path if entry else self.path

    def option(self, deployment: str, key: str) -> object:
        """The value of `key` in the file, None if it has none."""
        entry = self.deployment(deployment)
        return entry.options.get(key) if entry else None


def gpu_bundles(options: Mapping[str, Any]) -> tuple[float, ...]:
    """GPUs that a replica of the deployment with these `options` asks for together: those of each bundle of
    its placement group, in which its actor's own are, or else those of its actor."""
    if bundles := options.get("placement_group_bundles"):
        return tuple(float(bundle["GPU"]) for bundle in bundles if bundle.get("GPU"))
    actor = options.get("ray_actor_options") or {}
    return (float(actor["num_gpus"]),) if actor.get("num_gpus") else ()


def most_replicas(app: ApplicationEntry, deployment: str, default: int) -> int:
    """The number of replicas to which Ray Serve may scale a deployment of `app`; `default` where its entry
    says nothing."""
    fixed, scaling = app.option(deployment, "num_replicas"), app.option(deployment, "autoscaling_config")
    if fixed == "auto" or isinstance(scaling, dict):
        wanted = scaling.get("max_replicas") if isinstance(scaling, dict) else None
        return wanted if isinstance(wanted, int) else SERVE_AUTO_MAX_REPLICAS if fixed == "auto" else 1
    return fixed if isinstance(fixed, int) else default


@dataclass(frozen=True)
class ServeFile:
    """A config file as far as it can be read. The problems of a section that is missing here are already
    reported."""

    document: Document
    applications: tuple[ApplicationEntry, ...]
    environ: Mapping[str, str]
    router_app: ApplicationEntry | None
    router: RouterConfig | None
    routing: RoutingConfig | None
    model_configs: Mapping[str, ModelServerConfig]
    """`args` of each local model, by application name."""
    tunables: Mapping[str, ModelTunables]

    @property
    def model_apps(self) -> tuple[ApplicationEntry, ...]:
        return tuple(app for app in self.applications if app.kind == "model")

    @property
    def http_options(self) -> YamlMapping:
        options = self.document.raw.get("http_options")
        return options if isinstance(options, dict) else {}

    @property
    def deadline_s(self) -> float:
        """The deadline of requests; 0 if the routing could not be read."""
        return self.routing.limits.deadline_s if self.routing else 0.0

    @property
    def routing_path(self) -> KeyPath:
        return (*self.router_app.path_of(ROUTER), "user_config") if self.router_app else ("applications",)

    def served(self) -> Iterator[tuple[KeyPath, str, ServedEngineConfig]]:
        """Path, name and engine of the router's local models."""
        for index, model in enumerate(self.router.models if self.router else ()):
            if self.router_app and isinstance(model.engine, ServedEngineConfig):
                yield (*self.router_app.path, "args", "models", index), model.name, model.engine

    def error(self, path: KeyPath, message: str) -> Problem:
        return self.document.problem("error", path, message)

    def warning(self, path: KeyPath, message: str) -> Problem:
        return self.document.problem("warning", path, message)


def read_serve_file(document: Document, environ: Mapping[str, str]) -> tuple[ServeFile, list[Problem]]:
    """The R2 sections of `document`, and the problems inside each of them."""
    applications = tuple(_applications(document))
    models: dict[str, ModelServerConfig] = {}
    tunables: dict[str, ModelTunables] = {}
    problems: list[Problem] = []
    for app in applications:
        if app.kind == "model":
            config, found = read_section(document, ModelServerConfig, (*app.path, "args"))
            tuned, found_too = _read_tunables(document, app)
            problems += found + found_too
            models |= {app.name: config} if config else {}
            tunables |= {app.name: tuned} if tuned else {}
    router_app = next((app for app in applications if app.kind == "router"), None)
    router, routing, found = _read_router(document, router_app)
    return ServeFile(
        document, applications, environ, router_app, router, routing, models, tunables
    ), problems + found


def _applications(document: Document) -> Iterator[ApplicationEntry]:
    for path, options in _entries(document, ("applications",)):
        deployments = [
            DeploymentEntry(at, str(entry.get("name", "")), entry)
            for at, entry in _entries(document, (*path, "deployments"))
        ]
        yield ApplicationEntry(
            path, str(options.get("name", "")), _kind(options.get("import_path")), options, tuple(deployments)
        )


def _entries(document: Document, path: KeyPath) -> Iterator[tuple[KeyPath, YamlMapping]]:
    """The mappings in the list at `path`; anything else there is reported by Ray's schema."""
    items = document.value(path) if document.node(path) is not None else []
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            yield (*path, index), item


def _kind(import_path: object) -> Literal["router", "model", "other"]:
    if import_path == ROUTER_IMPORT_PATH:
        return "router"
    return "model" if import_path == MODEL_IMPORT_PATH else "other"


def _read_router(
    document: Document, app: ApplicationEntry | None
) -> tuple[RouterConfig | None, RoutingConfig | None, list[Problem]]:
    if app is None:
        return None, None, []
    router, problems = read_section(document, RouterConfig, (*app.path, "args"))
    if app.option(ROUTER, "user_config") is None:
        message = "no `user_config` of deployment 'Router': it holds the virtual models and limits of routing"
        return router, None, [*problems, document.problem("error", app.path_of(ROUTER), message)]
    routing, found = read_section(document, RoutingConfig, (*app.path_of(ROUTER), "user_config"))
    return router, routing, problems + found


def _read_tunables(document: Document, app: ApplicationEntry) -> tuple[ModelTunables | None, list[Problem]]:
    if app.option(MODEL, "user_config") is None:
        return None, []
    return read_section(document, ModelTunables, (*app.path_of(MODEL), "user_config"))
