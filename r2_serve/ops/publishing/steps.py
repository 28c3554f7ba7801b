"""Carries a plan out and reports each step with its time. A failed step is undone, and the error says what is
in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from r2_serve.cluster.serve_api import Dashboard, check_deployed
from r2_serve.errors import PublishError, R2Error, ServeApiError
from r2_serve.files import whole_file
from r2_serve.ops.publishing.plan import Publication, Rollback
from r2_serve.ops.publishing.trial import EndOfTrial
from r2_serve.serve_config.document import YamlMapping, read_text

LOADER_IMPORT_PATH = "r2_serve.app:build_adapter_load"
Tell = Callable[[str], None]


class ConfigFile:
    """The config file. It is written only if it still holds the text that we read or wrote last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.original = self._last = read_text(path)

    @property
    def previous(self) -> Path:
        """The file that keeps the text before the change."""
        return self.path.with_name(self.path.name + ".previous")

    def write(self, text: str) -> None:
        """Replaces the text. Raises: PublishError if somebody else has changed the file meanwhile."""
        if read_text(self.path) != self._last:
            raise PublishError(
                f"{self.path} was changed by somebody else meanwhile: look at it, then publish again"
            )
        if self._last == self.original:
            _replace(self.previous, self.original)
        _replace(self.path, text)
        self._last = text


def _replace(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def publish(plan: Publication, file: ConfigFile, dashboard: Dashboard, tell: Tell) -> None:
    """Load the adapter on every replica, name it in the file, then route to it; each deployed and waited for.

    Raises: PublishError; the routing is then what it was, and so is the file unless the error says otherwise.
    """
    original = yaml.safe_load(file.original)
    check_deployed(original, dashboard.applications())
    with step(tell, f"loaded on every replica of {plan.app}"):
        _load_everywhere(plan, original, dashboard)
    with (
        step(tell, f"named in user_config of {plan.app}"),
        restored(file, dashboard, file.original, "nothing was published"),
    ):
        file.write(plan.loaded)
        dashboard.deploy(yaml.safe_load(plan.loaded))
        dashboard.wait_for(plan.app)
    to = f"{plan.manifest.module} of {', '.join(plan.virtual_models)}"
    how = f"tries {plan.manifest.name} ({plan.shares})" if plan.shares else f"routed to {plan.manifest.name}"
    with (
        step(tell, f"{to} {how}"),
        restored(file, dashboard, plan.loaded, "the adapter is loaded but not used"),
    ):
        route(plan.routed, plan.router_app, file, dashboard)


def roll_back(plan: Rollback, file: ConfigFile, dashboard: Dashboard, tell: Tell) -> None:
    """Route to what is still loaded. Raises: PublishError; routing and file are then what they were."""
    check_deployed(yaml.safe_load(file.original), dashboard.applications())
    ((_, new), *_) = plan.moves.values()
    with (
        step(tell, f"{plan.module} of {', '.join(plan.moves)} routed to {new}"),
        restored(file, dashboard, file.original, "still as before"),
    ):
        route(plan.routed, plan.router_app, file, dashboard)


def end_trial(plan: EndOfTrial, file: ConfigFile, dashboard: Dashboard, tell: Tell) -> None:
    """Promote or withdraw candidates by one change of the router. Raises: PublishError, as `roll_back`."""
    check_deployed(yaml.safe_load(file.original), dashboard.applications())
    named = ", ".join(f"{candidate} of {name}" for name, candidate in plan.candidates.items())
    with (
        step(tell, f"{plan.action}: {named}"),
        restored(file, dashboard, file.original, "still as before"),
    ):
        route(plan.routed, plan.router_app, file, dashboard)


def _load_everywhere(plan: Publication, config: YamlMapping, dashboard: Dashboard) -> None:
    """Deploys an application whose builder loads the adapter (`build_adapter_load`); the next deploy removes
    it."""
    (model_app,) = (app for app in config["applications"] if app["name"] == plan.app)
    loader = {
        "name": f"publish-{plan.manifest.name}",
        "route_prefix": None,
        "import_path": LOADER_IMPORT_PATH,
        "args": {
            "app": plan.app,
            "name": plan.manifest.name,
            "path": str(plan.directory),
            "timeout_s": dashboard.timeout_s,
        },
        **({"runtime_env": model_app["runtime_env"]} if "runtime_env" in model_app else {}),
    }
    build_once(loader, config, dashboard, f"adapter {plan.manifest.name!r}")


def build_once(app: YamlMapping, config: YamlMapping, dashboard: Dashboard, what: str) -> None:
    """Deploy a short-lived application beside `config`; its builder does the work on the cluster.

    Raises: PublishError with the builder's message; `config` is then deployed as before.
    """
    try:
        dashboard.deploy({**config, "applications": [*config["applications"], app]})
        dashboard.wait_for(app["name"])
    except BaseException as e:
        dashboard.deploy(config)
        if not isinstance(e, PublishError | ServeApiError):
            raise
        raise PublishError(f"{what} was not published, file and routing are as before: {e.message}") from e


def route(text: str, router_app: str, file: ConfigFile, dashboard: Dashboard) -> None:
    file.write(text)
    dashboard.deploy(yaml.safe_load(text))
    dashboard.wait_for(router_app)


@contextmanager
def restored(file: ConfigFile, dashboard: Dashboard, text: str, outcome: str) -> Iterator[None]:
    """Puts `text` back, in the file and on the cluster, if the block fails or is interrupted."""
    try:
        yield
    except BaseException as e:
        try:
            file.write(text)
            dashboard.deploy(yaml.safe_load(text))
        except (R2Error, OSError) as failure:
            reason = getattr(e, "message", type(e).__name__)
            raise PublishError(
                f"{reason}; putting {file.path} back failed too ({failure}): "
                f"its earlier text is {file.previous}"
            ) from e
        if isinstance(e, PublishError | ServeApiError):
            raise PublishError(f"{e.message}; {outcome}: {file.path} was put back and deployed") from e
        raise


@contextmanager
def step(tell: Tell, what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    tell(f"{time.monotonic() - start:6.1f} s  {what}")
