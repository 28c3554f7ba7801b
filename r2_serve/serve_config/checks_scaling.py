"""Autoscaling with our own policy: its settings are read as strictly as ours, and so is what would undo it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from r2_serve.config import PlanAheadConfig
from r2_serve.serve_config.applications import ApplicationEntry, DeploymentEntry, ServeFile
from r2_serve.serve_config.document import KeyPath, Problem, suggestion
from r2_serve.serve_config.sections import read_section

PLAN_AHEAD = "r2_serve.scaling.serve_policy:PlanAhead"
SERVE_DEFAULT_UPSCALE_DELAY_S = 30.0


def check_policies(file: ServeFile) -> Iterator[Problem]:
    for app, entry, path, scaling in _autoscaled(file):
        policy = scaling.get("policy")
        function = str(policy.get("policy_function", "")) if isinstance(policy, dict) else ""
        if not function.startswith("r2_serve"):
            continue
        at = (*path, "policy", "policy_function")
        if function != PLAN_AHEAD:
            yield file.document.problem("error", at, f"no such policy{suggestion(function, [PLAN_AHEAD])}")
        elif app.kind != "model":
            yield file.document.problem(
                "error",
                at,
                f"plans tell what models will be asked, and nothing about {entry.name!r}: leave it out",
            )
        else:
            yield from _check_plan_ahead(file, path, scaling)


def _check_plan_ahead(file: ServeFile, path: KeyPath, scaling: Mapping[str, Any]) -> Iterator[Problem]:
    kwargs = (*path, "policy", "policy_kwargs")
    if file.document.node(kwargs) is not None:
        yield from read_section(file.document, PlanAheadConfig, kwargs)[1]
    delay_s = scaling.get("upscale_delay_s", SERVE_DEFAULT_UPSCALE_DELAY_S)
    if isinstance(delay_s, int | float) and delay_s > 1:
        message = f"replicas would start {delay_s:g} s after the plans ask for them: say `upscale_delay_s: 0`, as plans are no noise to wait out"
        yield file.document.problem("warning", path, message)


def _autoscaled(
    file: ServeFile,
) -> Iterator[tuple[ApplicationEntry, DeploymentEntry, KeyPath, Mapping[str, Any]]]:
    for app in file.applications:
        for entry in app.deployments:
            scaling = entry.options.get("autoscaling_config")
            if isinstance(scaling, dict):
                yield app, entry, (*entry.path, "autoscaling_config"), scaling
