"""Autoscaling by our own policy: its settings are read as strictly as ours, and so are options that would
undo it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from r2_serve.config import PlanAheadConfig
from r2_serve.serve_config.applications import ServeFile
from r2_serve.serve_config.document import KeyPath, Problem, YamlMapping, suggestion
from r2_serve.serve_config.sections import read_section

PLAN_AHEAD = "r2_serve.scaling.serve_policy:PlanAhead"
SERVE_DEFAULT_UPSCALE_DELAY_S = 30.0


def check_policies(file: ServeFile) -> Iterator[Problem]:
    """Checks the policies of R2; `imports` checks those of others."""
    for app in file.applications:
        for entry in app.deployments:
            scaling, path = entry.options.get("autoscaling_config"), (*entry.path, "autoscaling_config")
            policy = scaling.get("policy") if isinstance(scaling, dict) else None
            function = str(policy.get("policy_function", "")) if isinstance(policy, dict) else ""
            at = (*path, "policy", "policy_function")
            if not function.startswith("r2_serve"):
                continue
            if function != PLAN_AHEAD:
                yield file.error(at, f"no such policy{suggestion(function, [PLAN_AHEAD])}")
            elif app.kind != "model":
                message = (
                    f"plans tell which models will be asked, and nothing about {entry.name!r}: leave it out"
                )
                yield file.error(at, message)
            elif isinstance(scaling, dict):
                yield from _check_plan_ahead(file, path, scaling)


def check_replicas(file: ServeFile) -> Iterator[Problem]:
    """A fixed number of replicas beside `max_replicas`, which scales it: Serve would obey only one."""
    configs = {**file.model_configs, **({file.router_app.name: file.router} if file.router_app else {})}
    for app in file.applications:
        config = configs.get(app.name)
        for entry in app.deployments:
            if config is not None and config.max_replicas > 1 and "num_replicas" in entry.options:
                message = f"`args` of {app.name!r} have max_replicas {config.max_replicas}, which scales it: "
                yield file.error((*entry.path, "num_replicas"), f"{message}leave one of the two out")


def _check_plan_ahead(file: ServeFile, path: KeyPath, scaling: YamlMapping) -> Iterator[Problem]:
    kwargs = (*path, "policy", "policy_kwargs")
    if file.document.node(kwargs) is not None:
        yield from read_section(file.document, PlanAheadConfig, kwargs)[1]
    policy = scaling.get("policy") or {}
    given = (policy.get("policy_kwargs") or {}).get("cold_starts")
    if isinstance(given, str) and not Path(given).exists():
        yield file.error((*kwargs, "cold_starts"), f"no file or directory {given!r} on this machine")
    delay_s = scaling.get("upscale_delay_s", SERVE_DEFAULT_UPSCALE_DELAY_S)
    if isinstance(delay_s, int | float) and delay_s > 1:
        message = f"replicas would start {delay_s:g} s after the plans ask for them: say `upscale_delay_s: 0`"
        yield file.warning((*path, "upscale_delay_s"), f"{message}, as plans are no noise to wait out")
