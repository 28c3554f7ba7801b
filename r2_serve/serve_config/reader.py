"""Reads a config file: `check` lists what is wrong with it, `load` gives it as typed sections. Ray is imported when needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r2_serve.config import ModelServerConfig, RouterConfig, RoutingConfig
from r2_serve.errors import ConfigError
from r2_serve.serve_config.applications import ServeFile, read_serve_file
from r2_serve.serve_config.checks import cross_problems
from r2_serve.serve_config.document import Document, Problem, read_yaml, refusal
from r2_serve.serve_config.sections import (
    NOT_A_MAPPING,
    Section,
    key_problems,
    sections,
    unknown_keys,
    value_problems,
)

IMPORTED_KEYS = ("policy_function", "request_router_class")
"""Options whose value Ray imports as soon as it reads them."""


@dataclass(frozen=True)
class ServeConfig:
    """A config file without errors."""

    router: RouterConfig
    routing: RoutingConfig
    model_apps: dict[str, ModelServerConfig]
    """`args` of each local model, by application name."""
    router_app_name: str
    raw: dict[str, Any]
    """The file as plain data, for `ray.serve.schema.ServeDeploySchema` and `serve deploy`."""
    http_host: str
    http_port: int
    proxy_location: str


def load(path: Path) -> ServeConfig:
    """The config at `path`.

    Raises: ConfigError listing every error, or where the file cannot be read or Ray Serve is not installed.
    """
    document = read_yaml(path)
    file, problems = _inspect(document, os.environ)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors or file is None:
        raise refusal(path, errors)
    return _serve_config(file)


def check(path: Path, *, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Everything wrong with the config at `path`, in the order of its lines; nothing is started or fetched.

    Raises: ConfigError where the file cannot be read or Ray Serve is not installed.
    """
    return _inspect(read_yaml(path), os.environ if environ is None else environ)[1]


def own_problems(document: Document, environ: Mapping[str, str]) -> tuple[ServeFile, list[Problem]]:
    """The part of `check` that needs no Ray: repeated keys, our own sections, and what must hold between them."""
    file, problems = read_serve_file(document, environ)
    return file, [*document.problems, *problems, *cross_problems(file)]


def _inspect(
    document: Document | Problem, environ: Mapping[str, str]
) -> tuple[ServeFile | None, list[Problem]]:
    if isinstance(document, Problem):
        return None, [document]
    file, problems = own_problems(document, environ)
    told = {problem.where for problem in problems if problem.severity == "error"}
    if any(where.endswith((".name", ".route_prefix")) for where in told):
        told.add("applications")  # Ray Serve reports repeated names there, without saying which
    problems += [problem for problem in _serve_problems(document) if problem.where not in told]
    return file, sorted(set(problems), key=lambda problem: (problem.line, problem.where, problem.message))


def _serve_config(file: ServeFile) -> ServeConfig:
    assert file.router is not None and file.routing is not None and file.router_app is not None, (
        "as there was no error"
    )
    schema = _deploy_schema().model_validate(_without_code(file.document.raw))
    return ServeConfig(
        router=file.router,
        routing=file.routing,
        model_apps=dict(file.model_configs),
        router_app_name=file.router_app.name,
        raw=file.document.raw,
        http_host=schema.http_options.host,
        http_port=schema.http_options.port,
        proxy_location=schema.proxy_location.value,
    )


def _serve_problems(document: Document) -> list[Problem]:
    """Keys and values that Ray Serve's own schema does not know or allow."""
    schema = _deploy_schema()
    problems = key_problems(document, schema, ())
    if any(problem.message == NOT_A_MAPPING for problem in problems):
        return problems  # the schema's own validators would fall over it
    for section in sections(document, schema, ()):
        problems += _free_mapping_problems(document, section)
        if section.path == () or section.is_loose:
            problems += _problems_against(document, section)
    return problems


def _free_mapping_problems(document: Document, section: Section) -> list[Problem]:
    """Unknown keys where Ray's schema says no more than `dict`, though Ray knows the keys."""
    from ray.runtime_env import RuntimeEnv
    from ray.serve.config import AutoscalingPolicy

    known = {"runtime_env": RuntimeEnv.known_fields, "autoscaling_policy": AutoscalingPolicy.model_fields}
    keys = known.keys() & section.model.model_fields.keys()
    return [problem for key in keys for problem in unknown_keys(document, (*section.path, key), known[key])]


def _problems_against(document: Document, section: Section) -> list[Problem]:
    try:
        section.model.model_validate(_without_code(document.value(section.path)))
    except ValidationError as e:
        return value_problems(document, section.path, e)
    except (AttributeError, TypeError) as e:
        return [document.problem("error", section.path, f"Ray Serve's schema refuses this: {e}")]
    return []


def _without_code(value: Any) -> Any:
    """A copy, as Ray's validators write into what they check, without import paths, which they would run."""
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in IMPORTED_KEYS}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def _deploy_schema() -> Any:
    """Imported late, as it takes seconds. Raises: ConfigError where Ray Serve is not installed."""
    try:
        from ray.serve.schema import ServeDeploySchema
    except ImportError as e:
        raise ConfigError(
            f"checking a Serve config needs Ray Serve: pip install 'ray[default,serve]' ({e})"
        ) from e
    return ServeDeploySchema
