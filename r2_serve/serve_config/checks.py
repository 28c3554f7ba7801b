"""What must hold between the parts of a Ray Serve config: names that resolve, limits that fit each other.

Each check is a function from a `ServeFile` to problems; `CHECKS` lists them. None needs Ray: keys and values of Ray
Serve's own sections are `r2_serve.serve_config`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from r2_serve.adapters import MANIFEST, check_adapter, read_adapter
from r2_serve.config import HostedEngineConfig, ServedEngineConfig, VllmEngineConfig
from r2_serve.engines import resolve_checkpoint
from r2_serve.errors import ConfigError
from r2_serve.http.keys import read_keys_file, require_keys
from r2_serve.serve_config.applications import (
    MODEL_IMPORT_PATH,
    ROUTER_IMPORT_PATH,
    DeploymentEntry,
    ServeFile,
    most_replicas,
)
from r2_serve.serve_config.checks_scaling import check_policies
from r2_serve.serve_config.document import KeyPath, Problem, suggestion
from r2_serve.types import ModelCard

DEPLOYMENTS = {"router": ("Router", "Decomposer", "Allocator"), "model": ("Model",)}
SERVE_DEFAULT_HOST = "0.0.0.0"  # what is checked for, not bound  # noqa: S104  # nosec B104
SERVE_DEFAULT_SHUTDOWN_TIMEOUT_S = 20.0
SECRET = re.compile(r"\b(sk-[A-Za-z0-9_-]{12,}|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})")
"""API keys of OpenAI and its likes, Hugging Face tokens, AWS key ids."""


def cross_problems(file: ServeFile) -> list[Problem]:
    """What every one of `CHECKS` finds."""
    return [problem for check in CHECKS for problem in check(file)]


# -- checks: names ------------------------------------------------------------------------------------------------


def _check_import_paths(file: ServeFile) -> Iterator[Problem]:
    known = [ROUTER_IMPORT_PATH, MODEL_IMPORT_PATH]
    for app in file.applications:
        import_path = str(app.options.get("import_path", ""))
        if app.kind == "other" and import_path.startswith("r2_serve"):
            yield file.document.problem(
                "error", (*app.path, "import_path"), f"no such builder{suggestion(import_path, known)}"
            )
    routers = [app for app in file.applications if app.kind == "router"]
    if not routers:
        yield file.document.problem(
            "error",
            ("applications",),
            f"no router: one application must have import_path {ROUTER_IMPORT_PATH}",
        )
    for app in routers[1:]:
        yield file.document.problem(
            "error", app.path, f"a second router application; {routers[0].name!r} is the first"
        )


def _check_application_names(file: ServeFile) -> Iterator[Problem]:
    names: set[str] = set()
    for app in file.applications:
        if not app.name:
            yield file.document.problem("error", (*app.path, "name"), "missing")
        elif app.name in names:
            yield file.document.problem(
                "error", (*app.path, "name"), f"two applications are named {app.name!r}"
            )
        names.add(app.name)


def _check_routes(file: ServeFile) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for app in file.applications:
        route = app.options.get("route_prefix", "/")
        if not isinstance(route, str):
            continue
        path = (*app.path, "route_prefix")
        if route in taken:
            message = f"{route!r} is taken by {taken[route]!r}; an application without HTTP endpoint says `route_prefix: null`"
            yield file.document.problem("error", path, message)
        elif app.kind == "model":
            yield file.document.problem(
                "warning", path, "a local model is called through the router alone: say `route_prefix: null`"
            )
        if not route.startswith("/"):
            yield file.document.problem("error", path, "must start with '/'")
        taken.setdefault(route, app.name)


def _check_deployment_names(file: ServeFile) -> Iterator[Problem]:
    for app in file.applications:
        known = DEPLOYMENTS.get(app.kind)
        seen: set[str] = set()
        for entry in app.deployments:
            if known is not None and entry.name not in known:
                message = f"application {app.name!r} has no deployment {entry.name!r}{suggestion(entry.name, known)}"
                yield file.document.problem("error", (*entry.path, "name"), message)
            if entry.name in seen:
                yield file.document.problem(
                    "error", (*entry.path, "name"), f"two entries for deployment {entry.name!r}"
                )
            seen.add(entry.name)


def _check_served_apps(file: ServeFile) -> Iterator[Problem]:
    apps = {app.name for app in file.model_apps}
    used = {engine.app for _, _, engine in _served(file)}
    for path, name, engine in _served(file):
        if engine.app not in apps:
            message = f"model {name!r} is served by application {engine.app!r}, which is not in this file{suggestion(engine.app, apps)}"
            yield file.document.problem("error", (*path, "engine", "app"), message)
    for app in file.model_apps:
        if file.router is not None and app.name not in used:
            yield file.document.problem(
                "warning", app.path, f"the router has no model served by {app.name!r}"
            )


def _check_routing(file: ServeFile) -> Iterator[Problem]:
    if file.router is None or file.routing is None:
        return
    known = {model.name for model in file.router.models}
    unknown = [(path, name) for path, name in _named_models(file) if name not in known]
    for path, name in unknown:
        yield file.document.problem("error", path, f"no model {name!r} in `models`{suggestion(name, known)}")
    if not unknown:
        try:
            file.routing.check_against(file.router.models)
        except ValueError as e:
            yield file.document.problem("error", _routing_path(file), str(e))


def _check_adapters(file: ServeFile) -> Iterator[Problem]:
    apps = {name: engine.app for _, name, engine in _served(file)}
    for virtual, config in file.routing.virtual_models.items() if file.routing else ():
        for stage, section in (("decomposer", config.decomposer), ("allocator", config.allocator)):
            known = _adapters(file, apps.get(section.model, ""))
            if section.adapter is not None and section.adapter not in known:
                message = f"{section.model!r} loads no adapter {section.adapter!r}{suggestion(section.adapter, known)}"
                yield file.document.problem(
                    "error", (*_routing_path(file), "virtual_models", virtual, stage, "adapter"), message
                )


def _check_adapter_files(file: ServeFile) -> Iterator[Problem]:
    """Each adapter's directory, and its manifest against the cards that its application serves."""
    for app in file.model_apps:
        cards = [
            model
            for model in (file.router.models if file.router else ())
            if model.engine.kind == "served" and model.engine.app == app.name
        ]
        for path, name, directory in _adapter_directories(file, app.name):
            if not Path(directory).is_dir():
                message = f"no directory {directory} on this machine; every node that runs the model needs it"
                yield file.document.problem("warning", path, message)
            elif (Path(directory) / MANIFEST).is_file() and (
                fault := _fault(name, Path(directory), cards)
            ) is not None:
                yield file.document.problem("error", path, fault)


def _fault(name: str, directory: Path, cards: Sequence[ModelCard]) -> str | None:
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


# -- checks: limits -----------------------------------------------------------------------------------------------


def _check_concurrency(file: ServeFile) -> Iterator[Problem]:
    burst = file.routing.limits.max_parallel if file.routing else 0
    for app in file.model_apps:
        if app.option("Model", "max_ongoing_requests") is None:
            message = "`max_ongoing_requests` is not set: a default (Serve's own is 5) may be far below what an engine batches"
            yield file.document.problem("warning", app.path_of("Model"), message)
        queued = app.option("Model", "max_queued_requests")
        if isinstance(queued, int) and 0 <= queued < burst:
            message = f"{queued} is below limits.max_parallel ({burst}): the fan-out of one plan is a burst, which Serve would refuse"
            yield file.document.problem("warning", (*app.path_of("Model"), "max_queued_requests"), message)


def _check_shutdown_timeouts(file: ServeFile) -> Iterator[Problem]:
    deadline_s = file.routing.limits.deadline_s if file.routing else 0.0
    for app in file.applications:
        default = SERVE_DEFAULT_SHUTDOWN_TIMEOUT_S if app.kind == "router" else None
        for entry in app.deployments if app.kind != "other" else ():
            timeout_s = entry.options.get("graceful_shutdown_timeout_s", default)
            if isinstance(timeout_s, int | float) and timeout_s < deadline_s:
                message = f"{timeout_s:g} s is below limits.deadline_s ({deadline_s:g}): long generations are killed at scale-down"
                yield file.document.problem("warning", (*entry.path, "graceful_shutdown_timeout_s"), message)


def _check_request_timeout(file: ServeFile) -> Iterator[Problem]:
    deadline_s = file.routing.limits.deadline_s if file.routing else 0.0
    timeout_s = file.http_options.get("request_timeout_s")
    if isinstance(timeout_s, int | float) and timeout_s < deadline_s:
        message = f"{timeout_s:g} s is below limits.deadline_s ({deadline_s:g}): Serve would cut requests off first, with a plain 408"
        yield file.document.problem("warning", ("http_options", "request_timeout_s"), message)


def _check_gpus(file: ServeFile) -> Iterator[Problem]:
    for app in file.model_apps:
        config = file.model_configs.get(app.name)
        if (
            config is not None
            and isinstance(config.engine, VllmEngineConfig)
            and not _has_gpu(app.deployment("Model"))
        ):
            message = "vLLM without a GPU: set `ray_actor_options: {num_gpus: 1}` (fine where vLLM's CPU build is meant)"
            yield file.document.problem("warning", app.path_of("Model"), message)


def _check_embedded_models(file: ServeFile) -> Iterator[Problem]:
    for app in file.model_apps:
        config = file.model_configs.get(app.name)
        for key in ("path", "model"):
            try:
                resolve_checkpoint(str(getattr(config.engine, key, "")) if config else "")
            except ConfigError as e:
                yield file.document.problem("warning", (*app.path, "args", "engine", key), str(e))


# -- checks: secrets ----------------------------------------------------------------------------------------------


def _check_public_address(file: ServeFile) -> Iterator[Problem]:
    if file.router is not None:
        try:
            require_keys(str(file.http_options.get("host", SERVE_DEFAULT_HOST)), file.router.server)
        except ConfigError as e:
            yield file.document.problem("error", ("http_options", "host"), e.message)


def _check_keys_file(file: ServeFile) -> Iterator[Problem]:
    """A file that is not here may be on the nodes; one that is must be right."""
    if file.router is None or file.router_app is None or file.router.server.keys_file is None:
        return
    path, where = Path(file.router.server.keys_file), (*file.router_app.path, "args", "server", "keys_file")
    if not path.exists():
        yield file.document.problem(
            "warning", where, f"{path} is not here; each node that runs a router needs it"
        )
        return
    try:
        keys = read_keys_file(path)
    except ConfigError as e:
        yield file.document.problem("error", where, e.message)
        return
    known = {model.name for model in file.router.models} | set(
        file.routing.virtual_models if file.routing else ()
    )
    for key in keys:
        for name in set(key.models or ()) - known:
            message = f"key {key.name!r} may ask for {name!r}, which is no model{suggestion(name, known)}"
            yield file.document.problem("error", where, message)
    if any(key.budget_usd is not None for key in keys):
        hole = _budget_hole(
            most_replicas(file.router_app, "Router"), has_book=file.router.server.spend_file is not None
        )
        yield from (file.document.problem("warning", where, text) for text in [hole] if text)


def _budget_hole(num_routers: int, *, has_book: bool) -> str | None:
    """How a key could spend more than its budget, if it could, and what to do about it."""
    if num_routers == 1:
        return (
            None
            if has_book
            else "keys have budgets, but `server.spend_file` is not set: a restart of the router forgets what was spent"
        )
    if not has_book:
        return (
            f"keys have budgets, but each of up to {num_routers} Router replicas counts for itself and from its start, so a key could "
            f"spend {num_routers} times its budget: set `server.spend_file`, which replicas on one machine share, or `num_replicas: 1`"
        )
    return (
        f"keys have budgets, and of up to {num_routers} Router replicas only those on one machine share `server.spend_file`: with routers "
        "on several, a key could spend its budget on each. Set `num_replicas: 1`, or divide the budgets (fine where all run on one machine)"
    )


def _check_environment(file: ServeFile) -> Iterator[Problem]:
    """Each missing variable once, at its first place."""
    first_places: dict[str, KeyPath] = {}
    for path, variable in _named_variables(file):
        first_places.setdefault(variable, path)
    for variable, path in first_places.items():
        if not file.environ.get(variable):
            message = (
                f"{variable} is not set here; the cluster's nodes need it in the environment of `ray start`"
            )
            yield file.document.problem("warning", path, message)


def _check_literal_secrets(file: ServeFile) -> Iterator[Problem]:
    for number, line in enumerate(file.document.lines, start=1):
        if SECRET.search(line):
            message = "looks like a secret: name an environment variable instead (`api_key_env`), and revoke this one if it was shared"
            yield Problem("error", "", number, message)


CHECKS: tuple[Callable[[ServeFile], Iterator[Problem]], ...] = (
    _check_import_paths,
    _check_application_names,
    _check_routes,
    _check_deployment_names,
    _check_served_apps,
    _check_routing,
    _check_adapters,
    _check_adapter_files,
    _check_concurrency,
    _check_shutdown_timeouts,
    _check_request_timeout,
    _check_gpus,
    check_policies,
    _check_embedded_models,
    _check_public_address,
    _check_keys_file,
    _check_environment,
    _check_literal_secrets,
)


# -- what the checks ask ------------------------------------------------------------------------------------------


def _served(file: ServeFile) -> Iterator[tuple[KeyPath, str, ServedEngineConfig]]:
    """Path, name and engine of the router's local models."""
    for index, model in enumerate(file.router.models if file.router else ()):
        if file.router_app and isinstance(model.engine, ServedEngineConfig):
            yield (*file.router_app.path, "args", "models", index), model.name, model.engine


def _routing_path(file: ServeFile) -> KeyPath:
    return (*file.router_app.path_of("Router"), "user_config") if file.router_app else ("applications",)


def _named_models(file: ServeFile) -> Iterator[tuple[KeyPath, str]]:
    """Every place of the routing that names a pool model."""
    for name, virtual in file.routing.virtual_models.items() if file.routing else ():
        path = (*_routing_path(file), "virtual_models", name)
        yield from (((*path, "pool", index), model) for index, model in enumerate(virtual.pool))
        yield (*path, "decomposer", "model"), virtual.decomposer.model
        yield (*path, "allocator", "model"), virtual.allocator.model
        if virtual.default_model is not None:
            yield (*path, "default_model"), virtual.default_model
        if virtual.policy.startswith("all:"):
            yield (*path, "policy"), virtual.policy.removeprefix("all:")


def _named_variables(file: ServeFile) -> Iterator[tuple[KeyPath, str]]:
    if file.router is None or file.router_app is None:
        return
    path = (*file.router_app.path, "args")
    for index, model in enumerate(file.router.models):
        if isinstance(model.engine, HostedEngineConfig) and model.engine.api_key_env:
            yield (*path, "models", index, "engine", "api_key_env"), model.engine.api_key_env
    if file.router.server.api_keys_env:
        yield (*path, "server", "api_keys_env"), file.router.server.api_keys_env


def _adapters(file: ServeFile, app_name: str) -> set[str]:
    """Adapters that the application loads at its start or by its `user_config`."""
    return {name for _, name, _ in _adapter_directories(file, app_name)}


def _adapter_directories(file: ServeFile, app_name: str) -> Iterator[tuple[KeyPath, str, str]]:
    """Path, name and directory of those adapters."""
    app = next((app for app in file.model_apps if app.name == app_name), None)
    config, tunables = file.model_configs.get(app_name), file.tunables.get(app_name)
    if app is None:
        return
    at_start = config.engine.adapters if config else {}
    yield from (
        ((*app.path, "args", "engine", "adapters", name), name, directory)
        for name, directory in at_start.items()
    )
    live = tunables.adapters if tunables else {}
    yield from (
        ((*app.path_of("Model"), "user_config", "adapters", name), name, directory)
        for name, directory in live.items()
    )


def _has_gpu(entry: DeploymentEntry | None) -> bool:
    if entry is None:
        return False
    options = entry.options.get("ray_actor_options")
    bundles = entry.options.get("placement_group_bundles")
    in_bundles = (
        any("GPU" in bundle for bundle in bundles if isinstance(bundle, dict))
        if isinstance(bundles, list)
        else False
    )
    return in_bundles or bool(isinstance(options, dict) and options.get("num_gpus"))
