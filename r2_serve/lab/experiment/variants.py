"""A variant's Serve config: the experiment's, with the variant's patches merged into it. Plain data in, plain data out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from r2_serve.errors import ConfigError
from r2_serve.lab.experiment.config import Patch, Variant
from r2_serve.serve_config.document import suggestion

Raw = dict[str, Any]
"""A Serve config file as data."""
ROUTER = "Router"


def varied(raw: Mapping[str, Any], name: str, variant: Variant) -> Raw:
    """Raises: ConfigError where the variant names an application or a part that the config lacks."""
    config: Raw = copy.deepcopy(dict(raw))
    apps = [app["name"] for app in config["applications"]]
    for app in variant.applications:
        if app not in apps:
            raise ConfigError(f"variant {name!r}: no application {app!r}{suggestion(app, apps)}")
    scaled = list(_scaled(config))
    if variant.autoscaling_config and not scaled:
        raise ConfigError(
            f"variant {name!r} has an autoscaling_config, but no deployment of the config has one"
        )
    for app, deployment in scaled:
        own = variant.applications[app].autoscaling_config if app in variant.applications else {}
        deployment["autoscaling_config"] = merged(
            merged(deployment["autoscaling_config"], variant.autoscaling_config), own
        )
    if missed := sorted(variant.applications.keys() - {app for app, _ in scaled}):
        raise ConfigError(f"variant {name!r}: no deployment of {', '.join(missed)} has an autoscaling_config")
    if variant.routing:
        _router(config)["user_config"] = merged(_router(config)["user_config"], variant.routing)
    return config


def scaled_deployments(raw: Mapping[str, Any]) -> dict[str, int]:
    """APPLICATION/DEPLOYMENT of those that scale, and the least replicas of each."""
    return {
        f"{app}/{d['name']}": int((d["autoscaling_config"] or {}).get("min_replicas", 1))
        for app, d in _scaled(raw)
    }


def merged(value: Any, patch: Patch) -> Raw:
    """`value`, a mapping or None, with `patch` over it."""
    result = dict(value or {})
    for key, new in patch.items():
        if new is None:
            result.pop(key, None)
        elif isinstance(new, dict):
            result[key] = merged(result.get(key) if isinstance(result.get(key), dict) else None, new)
        else:
            result[key] = new
    return result


def _scaled(raw: Mapping[str, Any]) -> Iterator[tuple[str, Raw]]:
    for app in raw["applications"]:
        for deployment in app.get("deployments", ()):
            if "autoscaling_config" in deployment:
                yield app["name"], deployment


def _router(raw: Mapping[str, Any]) -> Raw:
    return next(d for app in raw["applications"] for d in app.get("deployments", ()) if d["name"] == ROUTER)
