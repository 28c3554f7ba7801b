"""`r2-serve config show`: a config as it is in force, with every default that the file does not name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import BaseModel

from r2_serve.ops.command_line import plain_errors
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import ROUTER
from r2_serve.serve_config.document import YamlMapping

config_app = typer.Typer(help="A Serve config, read with its defaults.", no_args_is_help=True)


@config_app.callback()
def _commands() -> None:
    """Keeps `show` a command of its own while it is the only one."""


@config_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A Serve config, such as r2.yaml.")],
) -> None:
    """Print the config as it is in force: every field of ours, with the defaults of those left out.

    It is for reading. Deploy the short file: a field that is written counts as your choice there, such as
    `chars_per_token`, which is otherwise learned. Ray Serve's own defaults are not in it.

    \b
    Example:  r2-serve config show r2.yaml | less
    """
    from r2_serve.serve_config import load

    with plain_errors():
        typer.echo(in_force(load(file)), nl=False)


def in_force(config: ServeConfig) -> str:
    """`config` as YAML, where the sections of R2 hold every field."""
    applications = [_application(config, app) for app in config.raw["applications"]]
    http = {"host": config.http_host, "port": config.http_port, **(config.raw.get("http_options") or {})}
    whole = {**config.raw, "http_options": http, "applications": applications}
    return yaml.dump(_plain(whole), Dumper=_Dumper, sort_keys=False, width=140)


def _application(config: ServeConfig, app: YamlMapping) -> YamlMapping:
    name = app["name"]
    if name == config.router_app_name:
        args: BaseModel = config.router
    elif name in config.model_apps:
        args = config.model_apps[name]
    else:
        return app
    return {**app, "args": args, "deployments": list(_deployments(config, app))}


def _deployments(config: ServeConfig, app: YamlMapping) -> Iterator[YamlMapping]:
    """Each deployment of an application of R2, with the options that the code gives it."""
    from ray.serve.deployment import Deployment, deployment_to_schema

    from r2_serve.app import bind_model, bind_router

    written = {entry["name"]: entry for entry in app.get("deployments", ())}
    options = {name: _without(entry, "name", "user_config") for name, entry in written.items()}
    is_router = app["name"] == config.router_app_name
    bound = (
        bind_router(config.router, options)
        if is_router
        else bind_model(config.model_apps[app["name"]], options)
    )
    parts = [bound, *bound._bound_deployment.init_args] if is_router else [bound]
    for part in parts:
        deployment = getattr(part, "_bound_deployment", None)
        if not isinstance(deployment, Deployment):
            continue
        entry = deployment_to_schema(deployment).model_dump(exclude_unset=True, mode="json")
        own = written.get(deployment.name, {}).get("user_config")
        live = config.routing if deployment.name == ROUTER else own
        yield {**entry, **({} if live is None else {"user_config": live})}


def _without(entry: YamlMapping, *keys: str) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key not in keys}


def _plain(value: object) -> object:
    """`value` as YAML has it: sections as mappings, tuples as lists."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_decimal(dumper: yaml.SafeDumper, value: Decimal) -> yaml.ScalarNode:
    kind, text = ("float", f"{value:f}") if value % 1 else ("int", f"{value:.0f}")
    return dumper.represent_scalar(f"tag:yaml.org,2002:{kind}", text)


_Dumper.add_representer(Decimal, _represent_decimal)
