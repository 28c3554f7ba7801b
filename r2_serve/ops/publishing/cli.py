"""`r2-serve publish` and `r2-serve rollback`: the first needs an adapter or a fitted gate on disk, the second
only a name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.adapters import MANIFEST
from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.publishing.gates import GateChange, plan_gate, plan_gate_rollback, route_gate
from r2_serve.ops.publishing.plan import Module, Publication, plan_publication, plan_rollback
from r2_serve.ops.publishing.steps import ConfigFile
from r2_serve.ops.publishing.steps import publish as carry_out
from r2_serve.ops.publishing.steps import roll_back as carry_back

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The file that was deployed; it is changed, and what runs follows."),
]
VirtualOption = Annotated[
    list[str] | None, typer.Option("--virtual-model", help="Only these; default: all that the adapter fits.")
]
GateOption = Annotated[
    str | None, typer.Option("--gate", help="A fitted gate of the config file; default: its only one.")
]
DashboardOption = Annotated[
    str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="The cluster's Ray dashboard.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=1, help="How long each step may take.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the change; write and deploy nothing.")
]
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"


def publish(
    path: Annotated[
        Path,
        typer.Argument(
            help=f"An adapter's directory, with its {MANIFEST}, or the file of a fitted gate; every node "
            "must see it at this path."
        ),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    virtual_model: VirtualOption = None,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Earlier adapters of the module that stay loaded, or files of the gate that stay named.",
        ),
    ] = 2,
    gate: GateOption = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Load an adapter or a fitted gate into the running application and route to it, without a restart or a
    lost request.

    First every replica of the adapter's base model loads it, or every router reads the gate; routing changes
    only after that. The config file keeps its comments, and FILE.previous keeps the text before the change.

    \b
    Example:  r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml --dry-run
              r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml
              r2-serve publish /mnt/r2/gates/gsm-0002.json --gate fitted
    """
    with plain_errors():
        file = ConfigFile(config)
        if gate is not None or path.is_file():
            targets = virtual_model or ()
            change = plan_gate(file.original, path, gate=gate, virtual_models=targets, keep=keep)
            _route_gate(change, file, Dashboard(dashboard, timeout_s=timeout_s), dry_run=dry_run)
            if not dry_run:
                back = f"r2-serve rollback --config {config} --gate {change.gate}"
                typer.echo(f"published {change.file}. Back: {back}")
            return
        plan = plan_publication(file.original, path, virtual_models=virtual_model or (), keep=keep)
        _describe(plan)
        if dry_run:
            _show_change(file, plan.routed)
            return
        carry_out(plan, file, Dashboard(dashboard, timeout_s=timeout_s), typer.echo)
    back = f"r2-serve rollback --config {config} --module {plan.manifest.module}"
    typer.echo(f"published {plan.manifest.name}. Back: {back}")


def rollback(
    module: Annotated[Module | None, typer.Option(help="decomposer or allocator.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    to: Annotated[
        str | None,
        typer.Option(
            help="A loaded adapter, or `base`: the model itself; or an earlier file of the gate. "
            "Default: the one used before."
        ),
    ] = None,
    gate: GateOption = None,
    virtual_model: VirtualOption = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Route back to an earlier adapter that is still loaded, or to an earlier file of a fitted gate: one live
    change of the router.

    \b
    Example:  r2-serve rollback --module decomposer --config serve_config.yaml
              r2-serve rollback --module allocator --to alloc-0001
              r2-serve rollback --gate fitted
    """
    with plain_errors():
        file = ConfigFile(config)
        if (module is None) == (gate is None):
            raise ConfigError(
                "name what to roll back: --module decomposer, --module allocator or --gate NAME"
            )
        if gate is not None:
            change = plan_gate_rollback(file.original, gate, to=to, virtual_models=virtual_model or ())
            _route_gate(change, file, Dashboard(dashboard, timeout_s=timeout_s), dry_run=dry_run)
            if not dry_run:
                typer.echo(f"rolled back to {change.file}")
            return
        assert module is not None
        plan = plan_rollback(file.original, module, to=to, virtual_models=virtual_model or ())
        for name, (old, new) in plan.moves.items():
            typer.echo(f"{module} of {name}: {old} -> {new}")
        if dry_run:
            _show_change(file, plan.routed)
            return
        carry_back(plan, file, Dashboard(dashboard, timeout_s=timeout_s), typer.echo)
    ((old, _), *_) = plan.moves.values()
    forward = f"r2-serve rollback --config {config} --module {module} --to {old}"
    typer.echo(f"rolled back. Forward again: {forward}")


def _route_gate(change: GateChange, file: ConfigFile, dashboard: Dashboard, *, dry_run: bool) -> None:
    for name, old in change.moves.items():
        typer.echo(f"gate {change.gate} of {name}: {old} -> {change.file}")
    if dry_run:
        _show_change(file, change.routed)
    else:
        route_gate(change, file, dashboard, typer.echo)


def _describe(plan: Publication) -> None:
    manifest = plan.manifest
    codec = f"codec {manifest.codec} version {manifest.codec_version}"
    typer.echo(f"{manifest.name}: {manifest.kind} adapter of {manifest.base}, {codec}, intact")
    for name, old in zip(plan.virtual_models, plan.replaced, strict=True):
        typer.echo(f"{manifest.module} of {name}: {old} -> {manifest.name}")
    if plan.dropped:
        typer.echo(f"unloaded from {plan.app}: {', '.join(plan.dropped)}")


def _show_change(file: ConfigFile, text: str) -> None:
    name = str(file.path)
    lines = difflib.unified_diff(file.original.splitlines(True), text.splitlines(True), name, name, n=2)
    typer.echo("".join(lines) + "dry run: nothing was written or deployed")
