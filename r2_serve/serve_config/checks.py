"""Conflicts between the parts of a Serve config: names that do not resolve, limits that do not fit each
other.

A check is a function from a `ServeFile` to problems; `CHECKS` lists them. None needs Ray: `reader` checks
keys and values of Ray Serve's own sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from r2_serve.router.policies import AUTO
from r2_serve.serve_config.applications import (
    DEPLOYMENTS,
    MODEL,
    MODEL_IMPORT_PATH,
    ROUTER_IMPORT_PATH,
    ServeFile,
)
from r2_serve.serve_config.checks_access import (
    check_databases,
    check_environment,
    check_keys_file,
    check_literal_secrets,
    check_public_address,
)
from r2_serve.serve_config.checks_engines import (
    check_adapter_files,
    check_adapters,
    check_embedded_models,
    check_numbers,
)
from r2_serve.serve_config.checks_gates import check_gates, check_plan_files
from r2_serve.serve_config.checks_pool import check_chat, check_pool, check_savings
from r2_serve.serve_config.checks_scaling import check_policies, check_replicas
from r2_serve.serve_config.checks_vllm import check_contexts, check_gpus, check_vllm
from r2_serve.serve_config.defaults import SHUTDOWN_S
from r2_serve.serve_config.document import KeyPath, Problem, suggestion

PORTS = range(1, 65536)


def cross_problems(file: ServeFile) -> list[Problem]:
    """The problems that `CHECKS` find."""
    return [problem for check in CHECKS for problem in check(file)]


# -- names ----------------------------------------------------------------------------------------------


def _check_import_paths(file: ServeFile) -> Iterator[Problem]:
    for app in file.applications:
        import_path = str(app.options.get("import_path", ""))
        if app.kind == "other" and import_path.startswith("r2_serve"):
            close = suggestion(import_path, [ROUTER_IMPORT_PATH, MODEL_IMPORT_PATH])
            yield file.error((*app.path, "import_path"), f"no such builder{close}")
    routers = [app for app in file.applications if app.kind == "router"]
    if not routers:
        message = f"no router: one application must have import_path {ROUTER_IMPORT_PATH}"
        yield file.error(("applications",), message)
    for app in routers[1:]:
        yield file.error(app.path, f"a second router application; {routers[0].name!r} is the first")


def _check_application_names(file: ServeFile) -> Iterator[Problem]:
    names: set[str] = set()
    for app in file.applications:
        if not app.name:
            yield file.error((*app.path, "name"), "missing")
        elif app.name in names:
            yield file.error((*app.path, "name"), f"two applications are named {app.name!r}")
        names.add(app.name)


def _check_routes(file: ServeFile) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for app in file.applications:
        route, path = app.options.get("route_prefix", "/"), (*app.path, "route_prefix")
        if not isinstance(route, str):
            continue
        if route in taken:
            message = f"{route!r} is taken by {taken[route]!r}; an application without HTTP endpoint says"
            yield file.error(path, f"{message} `route_prefix: null`")
        elif app.kind == "model":
            yield file.warning(path, "only the router calls a local model: say `route_prefix: null`")
        if not route.startswith("/"):
            yield file.error(path, "must start with '/'")
        taken.setdefault(route, app.name)


def _check_deployment_names(file: ServeFile) -> Iterator[Problem]:
    for app in file.applications:
        known = DEPLOYMENTS.get(str(app.options.get("import_path")))
        seen: set[str] = set()
        for entry in app.deployments:
            path = (*entry.path, "name")
            if known is not None and entry.name not in known:
                message = f"application {app.name!r} has no deployment {entry.name!r}"
                yield file.error(path, message + suggestion(entry.name, known))
            if entry.name in seen:
                yield file.error(path, f"two entries for deployment {entry.name!r}")
            seen.add(entry.name)


def _check_served_apps(file: ServeFile) -> Iterator[Problem]:
    apps = {app.name for app in file.model_apps}
    for path, name, engine in file.served():
        if engine.app not in apps and file.document.node((*path, "engine")) is None:
            message = f"model {name!r} has no `engine`, and no application {engine.app!r} serves it: add one"
            yield file.error(path, f"{message}, or name a provider, such as `engine: {{provider: openai}}`")
        elif engine.app not in apps:
            message = f"model {name!r} is served by application {engine.app!r}, which is not in this file"
            yield file.error((*path, "engine", "app"), message + suggestion(engine.app, apps))
    used = {engine.app for _, _, engine in file.served()}
    for app in file.model_apps:
        if file.router is not None and app.name not in used:
            yield file.warning(app.path, f"the router has no model served by {app.name!r}")


def _check_routing(file: ServeFile) -> Iterator[Problem]:
    if file.router is None or file.routing is None:
        return
    known = {model.name for model in file.router.models}
    unknown = [(path, name) for path, name in _named_models(file) if name not in known]
    for path, name in unknown:
        yield file.error(path, f"no model {name!r} in `models`{suggestion(name, known)}")
    if not unknown:
        try:
            file.routing.check_against(file.router.models)
        except ValueError as e:
            yield file.error(file.routing_path, str(e))


def _named_models(file: ServeFile) -> Iterator[tuple[KeyPath, str]]:
    """Every place of the routing that names a pool model."""
    for place, virtual in file.routing.routers if file.routing else ():
        path = (*file.routing_path, *place)
        yield from (((*path, "pool", index), model) for index, model in enumerate(virtual.pool))
        yield (*path, "decomposer", "model"), virtual.decomposer.model
        yield (*path, "allocator", "model"), virtual.allocator.model
        if virtual.default_model is not None:
            yield (*path, "default_model"), virtual.default_model
        kind, _, model = virtual.policy.partition(":")
        if model not in virtual.gates and (kind == "all" or (kind == "one" and model != AUTO)):
            yield (*path, "policy"), model


# -- limits ---------------------------------------------------------------------------------------------


def _check_concurrency(file: ServeFile) -> Iterator[Problem]:
    burst = file.routing.limits.max_parallel if file.routing else 0
    for app in file.model_apps:
        ongoing, server = app.option(MODEL, "max_ongoing_requests"), file.model_configs.get(app.name)
        kwargs = server.engine.engine_kwargs if server and server.engine.kind == "vllm" else {}
        at_once = kwargs.get("max_num_seqs")
        if isinstance(ongoing, int) and isinstance(at_once, int) and ongoing < at_once:
            message = f"lets {ongoing} calls in, but vLLM works on {at_once} at once: leave it out, or set "
            message += f"max_num_seqs to {ongoing} in engine_kwargs"
            yield file.warning((*app.path_of(MODEL), "max_ongoing_requests"), message)
        queued = app.option(MODEL, "max_queued_requests")
        if isinstance(queued, int) and 0 <= queued < burst:
            message = (
                f"{queued} is below limits.max_parallel ({burst}): Serve would refuse the steps of one plan,"
            )
            path = (*app.path_of(MODEL), "max_queued_requests")
            yield file.warning(path, f"{message} which arrive at once")


def _check_shutdown_timeouts(file: ServeFile) -> Iterator[Problem]:
    deadline_s = file.deadline_s
    for app in file.applications:
        for name in DEPLOYMENTS.get(str(app.options.get("import_path")), ()):
            timeout_s = app.option(name, "graceful_shutdown_timeout_s")
            found = SHUTDOWN_S if timeout_s is None else timeout_s
            if isinstance(found, int | float) and found < deadline_s:
                message = f"{found:g} s {'(the default) ' * (timeout_s is None)}of {name} "
                path = (*app.path_of(name), "graceful_shutdown_timeout_s")
                yield file.warning(
                    path,
                    f"{message}is below limits.deadline_s ({deadline_s:g}): "
                    "long generations are killed at scale-down",
                )


def _check_http_options(file: ServeFile) -> Iterator[Problem]:
    for section in ("http_options", "grpc_options"):
        options = file.document.raw.get(section)
        port = options.get("port") if isinstance(options, dict) else None
        if type(port) is int and port not in PORTS:
            message = f"got {port}, expected a port from {PORTS.start} to {PORTS.stop - 1}"
            yield file.error((section, "port"), message)
    timeout_s = file.http_options.get("request_timeout_s")
    if isinstance(timeout_s, int | float) and timeout_s < file.deadline_s:
        message = (
            f"{timeout_s:g} s is below limits.deadline_s ({file.deadline_s:g}): Serve would cut requests off"
        )
        yield file.warning(("http_options", "request_timeout_s"), f"{message} first, with a plain 408")


CHECKS: tuple[Callable[[ServeFile], Iterator[Problem]], ...] = (
    _check_import_paths,
    _check_application_names,
    _check_routes,
    _check_deployment_names,
    _check_served_apps,
    _check_routing,
    check_chat,
    check_pool,
    check_savings,
    check_gates,
    check_plan_files,
    check_adapters,
    check_adapter_files,
    _check_concurrency,
    _check_shutdown_timeouts,
    _check_http_options,
    check_gpus,
    check_vllm,
    check_contexts,
    check_numbers,
    check_policies,
    check_replicas,
    check_embedded_models,
    check_public_address,
    check_keys_file,
    check_databases,
    check_environment,
    check_literal_secrets,
)
