"""A variant's Serve config: the experiment's config with the variant's patches. Data in, data out."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from r2_serve.errors import ConfigError
from r2_serve.lab.experiment.config import ApplicationPatch, Raw, Variant, merged
from r2_serve.serve_config.applications import ROUTER
from r2_serve.serve_config.document import suggestion

UNCHANGED = ApplicationPatch.model_validate({})


def varied(raw: Raw, name: str, variant: Variant) -> Raw:
    """The config of a variant. Raises: ConfigError if it names an application or a part that `raw` lacks."""
    config = copy.deepcopy(raw)
    apps = [app["name"] for app in config["applications"]]
    for app in variant.applications:
        if app not in apps:
            raise ConfigError(f"variant {name!r}: no application {app!r}{suggestion(app, apps)}")
    scaled = list(_scaled(config))
    if variant.autoscaling_config and not scaled:
        raise ConfigError(
            f"variant {name!r} has an autoscaling_config, but no deployment of the config has one"
        )
    if missed := sorted(variant.applications.keys() - {app for app, _ in scaled}):
        raise ConfigError(f"variant {name!r}: no deployment of {', '.join(missed)} has an autoscaling_config")
    for app, deployment in scaled:
        own = variant.applications.get(app, UNCHANGED)
        common = merged(deployment["autoscaling_config"], variant.autoscaling_config)
        deployment["autoscaling_config"] = merged(common, own.autoscaling_config)
        deployment.update(merged(deployment, own.options))
    if variant.routing:
        deployments = (d for app in config["applications"] for d in app.get("deployments", ()))
        router = next(deployment for deployment in deployments if deployment["name"] == ROUTER)
        router["user_config"] = merged(router["user_config"], variant.routing)
    return config


def scaled_deployments(raw: Raw) -> dict[str, int]:
    """The least number of replicas of each deployment that scales, by APPLICATION/DEPLOYMENT."""
    return {
        f"{app}/{d['name']}": int((d["autoscaling_config"] or {}).get("min_replicas", 1))
        for app, d in _scaled(raw)
    }


def _scaled(raw: Raw) -> Iterator[tuple[str, Raw]]:
    for app in raw["applications"]:
        for deployment in app.get("deployments", ()):
            if "autoscaling_config" in deployment:
                yield app["name"], deployment
