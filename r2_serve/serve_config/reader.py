"""Reads a Serve config: `check` lists its problems, `load` gives its typed sections. Both import Ray late."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from r2_serve.config import ModelServerConfig, RouterConfig, RoutingConfig, with_engines
from r2_serve.errors import ConfigError
from r2_serve.serve_config.applications import ApplicationEntry, ServeFile, read_serve_file
from r2_serve.serve_config.checks import cross_problems
from r2_serve.serve_config.checks_access import SERVE_DEFAULT_HOST
from r2_serve.serve_config.defaults import filled
from r2_serve.serve_config.document import Document, KeyPath, Problem, YamlMapping, read_yaml, refusal
from r2_serve.serve_config.imports import import_problems, without_imports
from r2_serve.serve_config.sections import (
    NOT_A_MAPPING,
    Section,
    key_problems,
    number_problems,
    sections,
    unknown_keys,
    value_problems,
)

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema


SERVE_DEFAULT_PORT, SERVE_DEFAULT_PROXY_LOCATION = 8000, "EveryNode"


@dataclass(frozen=True)
class ServeConfig:
    """A config file without errors."""

    router: RouterConfig
    routing: RoutingConfig
    model_apps: dict[str, ModelServerConfig]
    """`args` of each local model, by application name."""
    router_app_name: str
    raw: YamlMapping
    """The file as plain data, with the default scaling and GPUs of its deployments."""
    written: YamlMapping
    """The file as plain data and no more, for `serve deploy`."""
    http_host: str
    http_port: int
    proxy_location: str


def load(path: Path, *, with_imports: bool = False) -> ServeConfig:
    """The config at `path`; `with_imports` also imports the functions that it names, as Ray does.

    Raises: ConfigError, which lists every error, or says that the file cannot be read or Ray Serve is not
    installed.
    """
    document = read_yaml(path)
    if isinstance(document, Problem):
        raise refusal(path, [document])
    file, problems = _inspect(document, os.environ)
    imports = import_problems(document) if with_imports else ()
    errors = [problem for problem in (*problems, *imports) if problem.severity == "error"]
    if errors:
        raise refusal(path, errors)
    return _serve_config(file)


def load_without_ray(path: Path) -> ServeConfig:
    """The config at `path` for a process without Ray: keys and values of Ray Serve's own are not checked.

    Raises: ConfigError, which lists every error of our own sections, or says that the file cannot be read.
    """
    document = read_yaml(path)
    if isinstance(document, Problem):
        raise refusal(path, [document])
    file, problems = own_problems(document, os.environ)
    port = file.http_options.get("port", SERVE_DEFAULT_PORT)
    if type(port) is not int:
        problems.append(document.problem("error", ("http_options", "port"), f"got {port!r}, expected a port"))
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise refusal(path, errors)
    return _serve_config(file)


def check(path: Path, *, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """The problems of the config at `path`, in the order of its lines; nothing is started or fetched.

    Unlike `load` it imports the functions and classes that the file names, such as autoscaling policies.

    Raises: ConfigError if the file is no YAML mapping or cannot be read, or if Ray Serve is not installed.
    """
    document = read_yaml(path)
    if isinstance(document, Problem):
        raise ConfigError(f"{path}, line {document.line}: {document.message}")
    problems = _inspect(document, os.environ if environ is None else environ)[1]
    reported = {problem.where for problem in problems}
    imports = [problem for problem in import_problems(document) if problem.where not in reported]
    return _in_order([*problems, *imports])


def own_problems(document: Document, environ: Mapping[str, str]) -> tuple[ServeFile, list[Problem]]:
    """The problems that need no Ray to be found: repeated keys, our own sections, and conflicts between
    them."""
    file, problems = read_serve_file(document, environ)
    return file, [*document.problems, *problems, *cross_problems(file)]


def _inspect(document: Document, environ: Mapping[str, str]) -> tuple[ServeFile, list[Problem]]:
    file, problems = own_problems(document, environ)
    reported = {problem.where for problem in problems if problem.severity == "error"}
    if any(where.endswith((".name", ".route_prefix")) for where in reported):
        reported.add("applications")  # Ray Serve reports repeated names there, without saying which
    problems += [problem for problem in _serve_problems(document) if problem.where not in reported]
    return file, _in_order(problems)


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(set(problems), key=lambda problem: (problem.line, problem.where, problem.message))


def _serve_config(file: ServeFile) -> ServeConfig:
    assert file.router is not None and file.routing is not None and file.router_app is not None, (
        "as there was no error"
    )
    models = with_engines(file.router.models, file.model_configs)
    router = file.router.model_copy(update={"models": models})
    return ServeConfig(
        router=router,
        routing=file.routing,
        model_apps=dict(file.model_configs),
        router_app_name=file.router_app.name,
        written=file.document.raw,
        raw={**file.document.raw, "applications": applications_of(file)},
        http_host=str(file.http_options.get("host", SERVE_DEFAULT_HOST)),
        http_port=int(file.http_options.get("port", SERVE_DEFAULT_PORT)),
        proxy_location=str(file.document.raw.get("proxy_location", SERVE_DEFAULT_PROXY_LOCATION)),
    )


def applications_of(file: ServeFile) -> list[YamlMapping]:
    """The applications as plain data, each of ours with the scaling and GPUs that its `args` imply."""
    return [_application(file, app) for app in file.applications]


def _application(file: ServeFile, app: ApplicationEntry) -> YamlMapping:
    """An application without the items of `deployments` that are no mappings."""
    deployments = [entry.options for entry in app.deployments]
    config = file.router if app.kind == "router" else file.model_configs.get(app.name)
    if config is not None:
        deployments = filled(deployments, config)
    has_any = deployments or "deployments" in app.options
    return {**app.options, "deployments": deployments} if has_any else app.options


def _serve_problems(document: Document) -> list[Problem]:
    """Keys and values that Ray Serve's own schema does not know or allow."""
    schema = _deploy_schema()
    problems = key_problems(document, schema, ())
    if any(problem.message == NOT_A_MAPPING for problem in problems):
        return problems  # the schema's own validators would fail on it
    problems += number_problems(document, schema, ())
    for section in sections(document, schema, ()):
        problems += _free_mapping_problems(document, section)
        if section.path == () or section.is_loose:
            problems += _problems_against(document, section)
    return problems


def _free_mapping_problems(document: Document, section: Section) -> list[Problem]:
    """Problems of mappings for which Ray's schema says no more than `dict`, though Ray knows their keys."""
    from ray.runtime_env import RuntimeEnv
    from ray.serve.config import AutoscalingPolicy

    known = {"runtime_env": RuntimeEnv.known_fields, "autoscaling_policy": AutoscalingPolicy.model_fields}
    keys = known.keys() & section.model.model_fields.keys()
    found = [problem for key in keys for problem in unknown_keys(document, (*section.path, key), known[key])]
    resources = _mapping_at(document, (*section.path, "resources"))
    found += [
        document.problem("error", (*section.path, "resources", name), f"got {amount!r}, expected a number")
        for name, amount in resources.items()
        if isinstance(amount, bool) or not isinstance(amount, int | float)
    ]
    return found + _runtime_env_problems(document, (*section.path, "runtime_env"))


def _runtime_env_problems(document: Document, path: KeyPath) -> list[Problem]:
    """Values of a runtime environment that Ray refuses when it starts a process in it."""
    from ray.runtime_env import RuntimeEnv

    variables = _mapping_at(document, (*path, "env_vars"))
    problems = [
        document.problem("error", (*path, "env_vars", name), "expected text: put the value in quotes")
        for name, text in variables.items()
        if not isinstance(text, str)
    ]
    for key, value in _mapping_at(document, path).items():
        try:
            if key in RuntimeEnv.known_fields and not (key == "env_vars" and problems):
                RuntimeEnv(**{key: value})
        except (TypeError, ValueError) as e:
            problems.append(document.problem("error", (*path, key), f"Ray refuses this: {e}"))
    return problems


def _mapping_at(document: Document, path: KeyPath) -> YamlMapping:
    found = document.value(path) if document.node(path) is not None else None
    return found if isinstance(found, dict) else {}


def _problems_against(document: Document, section: Section) -> list[Problem]:
    try:
        section.model.model_validate(without_imports(document.value(section.path)))
    except ValidationError as e:
        return value_problems(document, section.path, e)
    except (AttributeError, TypeError) as e:
        return [document.problem("error", section.path, f"Ray Serve's schema refuses this: {e}")]
    return []


def _deploy_schema() -> type[ServeDeploySchema]:
    """Ray Serve's schema, whose import takes seconds. Raises: ConfigError if Ray Serve is not installed."""
    try:
        from ray.serve.schema import ServeDeploySchema
    except ImportError as e:
        raise ConfigError(
            f"checking a Serve config needs Ray Serve: pip install 'ray[default,serve]' ({e})"
        ) from e
    schema: type[ServeDeploySchema] = ServeDeploySchema
    return schema
