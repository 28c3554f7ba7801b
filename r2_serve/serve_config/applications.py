"""The applications of a Ray Serve config file, as far as they can be read.

What is wrong inside a section of ours is told while reading; what must hold between sections is
`r2_serve.serve_config.checks`', and Ray Serve's own keys are `r2_serve.serve_config`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r2_serve.config import ModelServerConfig, ModelTunables, RouterConfig, RoutingConfig
from r2_serve.serve_config.document import Document, KeyPath, Problem
from r2_serve.serve_config.sections import read_section

ROUTER_IMPORT_PATH, MODEL_IMPORT_PATH = "r2_serve.app:build", "r2_serve.app:build_model"
SERVE_AUTO_MAX_REPLICAS = 100
"""Of `num_replicas: auto`. Source: `ray.serve.config.AutoscalingConfig.default`."""


@dataclass(frozen=True)
class DeploymentEntry:
    """An item of `deployments`: options on top of the code's."""

    path: KeyPath
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ApplicationEntry:
    """An item of `applications`. `other` is one that is not R2's, and left alone."""

    path: KeyPath
    name: str
    kind: Literal["router", "model", "other"]
    options: Mapping[str, Any]
    deployments: tuple[DeploymentEntry, ...]

    def deployment(self, name: str) -> DeploymentEntry | None:
        return next((entry for entry in self.deployments if entry.name == name), None)

    def path_of(self, deployment: str) -> KeyPath:
        """Of that deployment's entry, or the application's own where it has none."""
        entry = self.deployment(deployment)
        return entry.path if entry else self.path

    def option(self, deployment: str, key: str) -> Any:
        """What the file says of `key`, None where it says nothing."""
        entry = self.deployment(deployment)
        return entry.options.get(key) if entry else None


def most_replicas(app: ApplicationEntry, deployment: str) -> int:
    """To how many replicas Ray Serve may scale a deployment of `app`."""
    fixed, scaling = app.option(deployment, "num_replicas"), app.option(deployment, "autoscaling_config")
    if fixed == "auto" or isinstance(scaling, dict):
        wanted = scaling.get("max_replicas") if isinstance(scaling, dict) else None
        return wanted if isinstance(wanted, int) else SERVE_AUTO_MAX_REPLICAS if fixed == "auto" else 1
    return fixed if isinstance(fixed, int) else 1


@dataclass(frozen=True)
class ServeFile:
    """A config file as far as it can be read; what is wrong with a section that is missing here is already told."""

    document: Document
    applications: tuple[ApplicationEntry, ...]
    environ: Mapping[str, str]
    router_app: ApplicationEntry | None
    router: RouterConfig | None
    routing: RoutingConfig | None
    model_configs: Mapping[str, ModelServerConfig]
    """By application name."""
    tunables: Mapping[str, ModelTunables]

    @property
    def model_apps(self) -> tuple[ApplicationEntry, ...]:
        return tuple(app for app in self.applications if app.kind == "model")

    @property
    def http_options(self) -> Mapping[str, Any]:
        options = self.document.raw.get("http_options")
        return options if isinstance(options, dict) else {}


def read_serve_file(document: Document, environ: Mapping[str, str]) -> tuple[ServeFile, list[Problem]]:
    """The R2 sections of `document`, and what is wrong inside each of them."""
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


def _entries(document: Document, path: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
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
    if app.option("Router", "user_config") is None:
        message = "no `user_config` of deployment 'Router': it holds the virtual models and limits, and nothing is routed without"
        return router, None, [*problems, document.problem("error", app.path_of("Router"), message)]
    routing, found = read_section(document, RoutingConfig, (*app.path_of("Router"), "user_config"))
    return router, routing, problems + found


def _read_tunables(document: Document, app: ApplicationEntry) -> tuple[ModelTunables | None, list[Problem]]:
    if app.option("Model", "user_config") is None:
        return None, []
    return read_section(document, ModelTunables, (*app.path_of("Model"), "user_config"))
