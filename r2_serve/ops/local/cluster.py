"""A Ray cluster of our own on this machine: on loopback, with token authentication, gone when the context
ends.

`r2-serve up`, `demo` and the tests use it. It binds the same deployments as `serve deploy`, but in this
process: Serve starts a build process per application of a config file, and 13 of them would take a minute on
two cores.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.engines.vllm_arguments import ENVIRONMENT as VLLM_ENVIRONMENT
from r2_serve.errors import ConfigError, EngineUnavailable, counted
from r2_serve.ops.deploy_files.needs import named_resources, replicas_of
from r2_serve.ops.local import haproxy
from r2_serve.ops.local.progress import POLL_S, Say, say_nothing, start_limit_s, wait_until_running
from r2_serve.ops.local.room import check_room
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import ROUTER
from r2_serve.serve_config.document import YamlMapping, path_text
from r2_serve.serve_config.imports import import_faults

LOOPBACK = "127.0.0.1"
LOGS = {"log_level": "INFO", "enable_access_log": False}
"""Logging of a config without `logging_config`. Serve's access log would repeat the router's own line per
request."""
FLUSH_S = 1.0
"""Seconds from a request's end to the last bytes of its reply at the client; Serve's own orderly end takes 30
s."""
ANSWERING_S = 60.0
EVERY_ADDRESS = ("0.0.0.0", "::")  # compared with, not bound  # noqa: S104  # nosec B104
PORTS = range(20_000, 30_000)
"""Ports for servers that bind some time after the choice, in another process. The kernel's own range (from
32768 on Linux) will not do, as every connection of Ray's processes takes a port of it meanwhile; workers of
`ray start` take 10002 to 19999, Serve's replicas 30000 to 31000."""
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray's own ports on loopback, on Linux too
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # 2.5 times the routed queries per second, on two cores
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # throughput mode would hold 1,000 lines back
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # a third of the CPU of Serve's proxy (docs/performance.md)
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # By default every stopping model keeps its GPU for 30 s.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # the router counts requests itself
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50",  # a first start compiles the proxy's modules
    # So many worker processes start at once, and Ray warns of several times as many. Its default, the number
    # of cores, makes two cores warn of the twelve embedded models.
    "RAY_worker_maximum_startup_concurrency": "8",
    "OMP_NUM_THREADS": "1",
    # A killed replica of vLLM would leave EngineCore, its child, on the GPU for ever.
    "RAY_process_group_cleanup_enabled": "1",
    **VLLM_ENVIRONMENT,
}


def free_port() -> int:
    """A loopback port of `PORTS` that is free. Raises: EngineUnavailable."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise EngineUnavailable(
        f"all of the ports {PORTS.start} to {PORTS.stop - 1} of {LOOPBACK} are taken; end what holds them"
    )


def prepare_environment(*, shares_token: bool = False) -> None:
    """Sets `ENVIRONMENT`; variables that are set already stay.

    `shares_token` takes the user's token in place of one for this run, so that `publish` in another shell
    reaches the dashboard. Call it before anything imports ray, which reads the variables then and hands them
    to its processes.
    """
    if shares_token:
        os.environ.setdefault("RAY_AUTH_TOKEN", _token_of_user())
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    directory = Path(tempfile.mkdtemp(prefix="r2-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for name, value in haproxy.private_environment(directory, free_port).items():
        os.environ.setdefault(name, value)


def _token_of_user() -> str:
    """Ray's token in ~/.ray/auth_token, which is made if there is none, as by `ray get-auth-token`."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    return path.read_text(encoding="ascii").strip()


@contextlib.contextmanager
def local_cluster(
    config: ServeConfig,
    *,
    port: int,
    host: str = LOOPBACK,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    address: str = "local",
    dashboard_port: int | None = None,
    start_timeout_s: float | None = None,
    say: Say = say_nothing,
) -> Iterator[str]:
    """Runs the applications of `config`, and gives their base URL once they answer; all ends with the
    context.

    Ray counts the CPUs and GPUs of this machine where none are given, and the machine has every custom
    resource that `config` names. `address` names nodes that run already (`local_nodes`) and have their own.
    With `dashboard_port` Ray's dashboard runs there, and the applications are deployed through it, as `serve
    deploy` does, so that `publish` can change them: Serve starts a build process for each. None for
    `start_timeout_s`: `start_limit_s` of the config.

    Raises: ConfigError if the port is taken, a policy cannot be imported or a replica has no room;
    EngineUnavailable if Ray does not start, or an application fails or does not run in time.
    """
    limit_s = start_limit_s(config) if start_timeout_s is None else start_timeout_s
    check_port_is_free(host, port)
    if dashboard_port is not None:
        check_port_is_free(LOOPBACK, dashboard_port, "--dashboard")
    _check_environment()
    _check_imports(config)
    import ray

    own_node = {"include_dashboard": dashboard_port is not None, "_node_ip_address": LOOPBACK}
    if dashboard_port is not None:
        own_node |= {"dashboard_host": LOOPBACK, "dashboard_port": dashboard_port}
    own_node |= {"num_cpus": num_cpus, "num_gpus": num_gpus}
    own_node |= {"resources": named_resources(replicas_of(config))}
    try:
        logs = config.raw.get("logging_config") or LOGS
        say("starting Ray")
        _start_ray(address, own_node if address == "local" else {})
        check_room(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        say(f"starting {counted(len(config.model_apps), 'model')} and the router, for at most {limit_s:g} s")
        _start_serve(host, port, logs)
        if dashboard_port is None:
            run_apps(config, limit_s, say)
        else:
            _deploy_apps(config, f"http://{LOOPBACK}:{dashboard_port}", {"host": host, "port": port})
            wait_until_running([*config.model_apps, config.router_app_name], limit_s, say)
        reached_at = reachable(host)
        _wait_until_answering(reached_at, port)
        yield f"http://{reached_at}:{port}/v1"
    finally:
        ray.shutdown()  # ends every process; Serve's orderly end would take half a minute more


def _start_ray(address: str, new_node: YamlMapping) -> None:
    """Raises: EngineUnavailable."""
    import ray

    with _where_to_look():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **new_node)


def _start_serve(host: str, port: int, logs: YamlMapping) -> None:
    """Starts Serve without applications. Raises: EngineUnavailable."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": host, "port": port}
    with _where_to_look():
        serve.start(http_options=http, proxy_location="HeadOnly", logging_config=dict(logs))


@contextlib.contextmanager
def _where_to_look() -> Iterator[None]:
    """Turns an error of Ray's start into EngineUnavailable, which says where its logs are."""
    try:
        yield
    except Exception as e:
        reason = str(e).strip().splitlines() or [type(e).__name__]
        found_in = Path(tempfile.gettempdir()) / "ray" / "session_latest" / "logs"
        raise EngineUnavailable(
            f"Ray did not start: {reason[0].rstrip('.')}. Is the machine overloaded? "
            f"Its logs are in {found_in}"
        ) from e


def only(config: ServeConfig, virtual_models: Sequence[str]) -> ServeConfig:
    """`config` with these virtual models, and the models and applications that they need."""
    virtual = {name: config.routing.virtual_models[name] for name in virtual_models}
    used = {
        name
        for v in virtual.values()
        for name in (*v.pool, v.decomposer.model, v.allocator.model, v.fallback_model)
    }
    models = tuple(model for model in config.router.models if model.name in used)
    apps = {model.engine.app for model in models if model.engine.kind == "served"}
    return replace(
        config,
        router=config.router.model_copy(update={"models": models}),
        routing=config.routing.model_copy(update={"virtual_models": virtual}),
        model_apps={name: server for name, server in config.model_apps.items() if name in apps},
    )


def wait_for_interrupt() -> None:
    """Waits for ctrl-C or SIGTERM; a second one raises KeyboardInterrupt."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    interrupted.wait()


def finish_requests(config: ServeConfig) -> None:
    """Refuses new requests, and returns when all others are answered or their deadline has passed."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    async def finish() -> None:
        async with asyncio.timeout(config.routing.limits.deadline_s):
            routers = serve.get_deployment_handle(ROUTER, config.router_app_name)
            await routers.broadcast("finish").results_async(return_exceptions=True)
            await asyncio.sleep(FLUSH_S)

    # The handle's own loop ends with this one, which Serve logs as an error.
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    with contextlib.suppress(TimeoutError, RayError, RayServeException):
        asyncio.run(finish())  # Serve's throughput mode has no handles outside an event loop


def run_apps(config: ServeConfig, limit_s: float, say: Say) -> None:
    """Starts models and router at once; returns when all are running."""
    from ray import serve

    from r2_serve.app import bind_model, bind_router

    targets = [
        serve.RunTarget(bind_model(server, _options(config, name)), name, None)
        for name, server in config.model_apps.items()
    ]
    options = dict(_options(config, config.router_app_name))
    options[ROUTER] = {**options.get(ROUTER, {}), "user_config": config.routing.model_dump(mode="json")}
    router = bind_router(config.router, options)
    targets.append(serve.RunTarget(router, config.router_app_name, "/"))
    serve.run_many(targets, wait_for_applications_running=False)
    wait_until_running([target.name for target in targets], limit_s, say)


def _deploy_apps(config: ServeConfig, dashboard: str, http: YamlMapping) -> None:
    """Has Serve start models and router as from a config file. Raises: ServeApiError."""
    apps = {*config.model_apps, config.router_app_name}
    ours = [app for app in config.written["applications"] if app["name"] in apps]
    Dashboard(dashboard).deploy({**config.written, "http_options": http, "applications": ours})


def _wait_until_answering(host: str, port: int) -> None:
    """Waits for the proxy, which learns of a running router moments later. Raises: EngineUnavailable."""
    until_s = time.monotonic() + ANSWERING_S
    while time.monotonic() < until_s:
        connection = HTTPConnection(host, port, timeout=ANSWERING_S)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(POLL_S)
    raise EngineUnavailable(
        f"the router runs, but nothing answers at port {port} after {ANSWERING_S:g} s: "
        "is the machine overloaded?"
    )


def _options(config: ServeConfig, app: str) -> Mapping[str, YamlMapping]:
    """The `deployments` section of one application, by deployment name."""
    (section,) = (a for a in config.raw["applications"] if a["name"] == app)
    return {d["name"]: {k: v for k, v in d.items() if k != "name"} for d in section.get("deployments", [])}


def reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens at `host`."""
    return LOOPBACK if host in EVERY_ADDRESS else host


def check_port_is_free(host: str, port: int, option: str = "--port") -> None:
    """Raises: ConfigError if `port` is taken, or this machine has no address `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            if isinstance(e, socket.gaierror) or e.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"{host} is no address of this machine; choose another with --host") from e
            raise ConfigError(
                f"port {port} of {host} is taken ({e.strerror}); choose another with {option}"
            ) from e


def _check_environment() -> None:
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise ConfigError(f"{missing} not set: call prepare_environment() before anything imports ray")


def _check_imports(config: ServeConfig) -> None:
    """Raises: ConfigError for a policy that Serve's controller would fail on, again and again, in its log
    alone."""
    faults = [f"{path_text(path)}: {fault}" for path, fault in import_faults(config.raw)]
    if faults:
        raise ConfigError("\n".join(faults))
