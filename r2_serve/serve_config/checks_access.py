"""Who may use the endpoint, and which secrets it needs: keys, budgets, addresses, environment variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from r2_serve.config import HostedEngineConfig
from r2_serve.errors import ConfigError
from r2_serve.files import LOCAL, network_file_system
from r2_serve.http.keys import read_keys_file, require_keys
from r2_serve.serve_config.applications import ROUTER, ServeFile, most_replicas
from r2_serve.serve_config.document import KeyPath, Problem, suggestion

SERVE_DEFAULT_HOST = "0.0.0.0"  # what is checked for, not bound  # noqa: S104  # nosec B104
SECRET = re.compile(r"\b(sk-[A-Za-z0-9_-]{12,}|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})")
"""API keys as OpenAI and others make them, Hugging Face tokens, AWS key ids."""


def check_public_address(file: ServeFile) -> Iterator[Problem]:
    """An address that others reach needs client keys."""
    if file.router is not None:
        try:
            require_keys(str(file.http_options.get("host", SERVE_DEFAULT_HOST)), file.router.server)
        except ConfigError as e:
            yield file.error(("http_options", "host"), e.message)


def check_keys_file(file: ServeFile) -> Iterator[Problem]:
    """A keys file that exists here must be right; one that does not may be on the nodes."""
    if file.router is None or file.router_app is None or file.router.server.keys_file is None:
        return
    path, where = Path(file.router.server.keys_file), (*file.router_app.path, "args", "server", "keys_file")
    if not path.exists():
        yield file.warning(where, f"{path} is not here; each node that runs a router needs it")
        return
    try:
        keys = read_keys_file(path)
    except ConfigError as e:
        yield file.error(where, e.message)
        return
    known = {model.name for model in file.router.models}
    known |= set(file.routing.virtual_models if file.routing else ())
    for key in keys:
        for name in set(key.models or ()) - known:
            message = f"key {key.name!r} may ask for {name!r}, which is no model"
            yield file.error(where, message + suggestion(name, known))
    num_routers = most_replicas(file.router_app, ROUTER, file.router.max_replicas)
    hole = _budget_hole(num_routers, has_spend_file=file.router.server.spend_file is not None)
    if hole is not None and any(key.budget_usd is not None for key in keys):
        yield file.warning(where, f"keys have budgets, but {hole}")


def _budget_hole(num_routers: int, *, has_spend_file: bool) -> str | None:
    """How a key could spend more than its budget, and what to do about it; None if it could not."""
    if has_spend_file and num_routers == 1:
        return None
    if has_spend_file:
        return (
            f"of up to {num_routers} Router replicas only those on one machine share `server.spend_file`: "
            "with routers on several, a key could spend its budget on each. Set `num_replicas: 1`, "
            "or divide the budgets (fine if all run on one machine)"
        )
    if num_routers == 1:
        return "`server.spend_file` is not set: a restart of the router forgets what was spent"
    return (
        f"each of up to {num_routers} Router replicas counts for itself and from its start: a key could "
        f"spend {num_routers} times its budget: set `server.spend_file`, which replicas on one machine "
        "share, or `num_replicas: 1`"
    )


def check_databases(file: ServeFile) -> Iterator[Problem]:
    """SQLite files may be written by one machine alone, so none belongs on a shared directory."""
    if file.router is None or file.router_app is None:
        return
    server, args = file.router.server, (*file.router_app.path, "args", "server")
    named = (
        (("spend_file",), server.spend_file),
        (("responses", "file"), server.responses.file),
        (("feedback", "file"), server.feedback.file),
    )
    for place, path in named:
        if path is not None and (kind := network_file_system(Path(path))):
            message = f"{path} is on a network file system ({kind}), where SQLite loses writes: {LOCAL}"
            yield file.warning((*args, *place), message)
    implied = None if server.feedback.file else server.feedback_file
    if implied is None:
        return
    fix = "set `feedback: {file: PATH}` under `server`, on a disk of each router's machine"
    if kind := network_file_system(Path(implied)):
        message = f"puts {implied} on a network file system ({kind}), where SQLite loses writes: {fix}"
        yield file.warning((*args, "trace_dir"), message)
    elif most_replicas(file.router_app, ROUTER, file.router.max_replicas) > 1:
        message = f"also puts scores into {implied}, a SQLite file that one machine alone may write. If "
        message += f"routers on several machines share this directory, {fix} (fine if all run on one machine)"
        yield file.warning((*args, "trace_dir"), message)


def check_environment(file: ServeFile) -> Iterator[Problem]:
    """Each missing variable once, at its first place."""
    first_places: dict[str, KeyPath] = {}
    for path, variable in _named_variables(file):
        first_places.setdefault(variable, path)
    for variable, path in first_places.items():
        if not file.environ.get(variable):
            message = (
                f"{variable} is not set here; the cluster's nodes need it in the environment of `ray start`"
            )
            yield file.warning(path, message)


def check_literal_secrets(file: ServeFile) -> Iterator[Problem]:
    """Lines that hold a secret in clear."""
    for number, line in enumerate(file.document.lines, start=1):
        if SECRET.search(line):
            message = "looks like a secret: name an environment variable instead (`api_key_env`)"
            yield Problem("error", "", number, f"{message}, and revoke this one if it was shared")


def _named_variables(file: ServeFile) -> Iterator[tuple[KeyPath, str]]:
    if file.router is None or file.router_app is None:
        return
    path = (*file.router_app.path, "args")
    for index, model in enumerate(file.router.models):
        if isinstance(model.engine, HostedEngineConfig) and model.engine.api_key_env:
            yield (*path, "models", index, "engine", "api_key_env"), model.engine.api_key_env
    if file.router.server.api_keys_env:
        yield (*path, "server", "api_keys_env"), file.router.server.api_keys_env
