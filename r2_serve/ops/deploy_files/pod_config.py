"""A Serve config as pods carry it, for `r2-serve kuberay` and, when it changes, for `r2-serve publish`.

A pod is reached by its address, so `http_options.host` becomes 0.0.0.0 (the config must have client keys),
and `proxy_location` EveryNode (a proxy on each replica's node, no traffic through the head). The router gets
at least `num_routers` replicas on as many nodes, so that the loss of one costs only its own requests.
"""

from __future__ import annotations

import yaml

from r2_serve.config import ModelServerConfig, RouterConfig
from r2_serve.ops.deploy_files.templates import Object
from r2_serve.serve_config.applications import MODEL_IMPORT_PATH, ROUTER, ROUTER_IMPORT_PATH
from r2_serve.serve_config.defaults import filled

EVERY_ADDRESS = "0.0.0.0"  # of a pod, behind client keys  # noqa: S104  # nosec B104
ROUTERS = 2
_SECTIONS: dict[str, type[RouterConfig | ModelServerConfig]] = {
    ROUTER_IMPORT_PATH: RouterConfig,
    MODEL_IMPORT_PATH: ModelServerConfig,
}


def on_pods(raw: Object, num_routers: int = ROUTERS) -> Object:
    """The config with its changes for pods. To change the result again changes nothing."""
    http = {**raw.get("http_options", {}), "host": EVERY_ADDRESS}
    apps = [_with_routers(_with_defaults(app), num_routers) for app in raw["applications"]]
    return {**raw, "proxy_location": "EveryNode", "http_options": http, "applications": apps}


def as_text(raw: Object) -> str:
    """The value of `serveConfigV2`."""
    return yaml.safe_dump(raw, sort_keys=False, width=140)


def _with_defaults(app: Object) -> Object:
    """The application with what `args` say of its deployments, as if the file had written it.

    Whoever makes the text, it says the same: Serve restarts the replicas of a deployment whose entry gets an
    `autoscaling_config`.
    """
    section = _SECTIONS.get(app["import_path"])
    if section is None:
        return app
    deployments = filled(app.get("deployments") or (), section.model_validate(app["args"]))
    return {**app, "deployments": deployments} if deployments else app


def _with_routers(app: Object, num: int) -> Object:
    if app["import_path"] != ROUTER_IMPORT_PATH:
        return app
    deployments = list(app.get("deployments", ()))
    if not any(entry["name"] == ROUTER for entry in deployments):
        deployments.append({"name": ROUTER})
    more = [_of_several(entry, num) if entry["name"] == ROUTER else entry for entry in deployments]
    return {**app, "deployments": more} if num > 1 else app


def _of_several(entry: Object, num: int) -> Object:
    """The deployment with at least `num` replicas; what the file says beyond that stays."""
    apart = {"max_replicas_per_node": 1, **entry}
    scaling, fixed = entry.get("autoscaling_config") or {}, entry.get("num_replicas")
    if not scaling and fixed != "auto":
        return {**apart, "num_replicas": max(fixed or 1, num)}
    # `auto` has a most of its own where the file names none.
    keys = [key for key in ("min_replicas", "max_replicas") if key in scaling or fixed != "auto"]
    bounds = {key: max(num, int(scaling.get(key, 1))) for key in dict.fromkeys(["min_replicas", *keys])}
    return {**apart, "autoscaling_config": {**scaling, **bounds}}
