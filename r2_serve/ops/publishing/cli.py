"""`r2-serve publish` and `r2-serve rollback`: the first needs an adapter or a fitted file on disk, the second
only a name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from r2_serve.adapters import MANIFEST
from r2_serve.config import MarginsConfig
from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import DEFAULT_CONFIG, fail, plain_errors
from r2_serve.ops.publishing.fitted import FileChange, plan_file_change, plan_file_rollback, route_file
from r2_serve.ops.publishing.options import (
    DEFAULT_DASHBOARD,
    ConfigOption,
    DashboardOption,
    DryRunOption,
    GateOption,
    RayServiceOption,
    TimeoutOption,
    VirtualOption,
)
from r2_serve.ops.publishing.plan import Module, Pool, Publication, plan_publication, plan_rollback
from r2_serve.ops.publishing.rayservice import Target
from r2_serve.ops.publishing.steps import ConfigFile, end_trial
from r2_serve.ops.publishing.steps import publish as carry_out
from r2_serve.ops.publishing.steps import roll_back as carry_back
from r2_serve.ops.publishing.trial import TrialShares, plan_end


def publish(
    path: Annotated[
        Path,
        typer.Argument(
            help=f"An adapter's directory, with its {MANIFEST}, or what `r2-train fit` wrote; every node "
            "must see it at this path."
        ),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    virtual_model: VirtualOption = None,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Earlier adapters of the module that stay loaded, or fitted files that stay named.",
        ),
    ] = 2,
    gate: GateOption = None,
    shadow: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of queries that it answers too, unseen.")
    ] = None,
    canary: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of conversations that it answers.")
    ] = None,
    budget_usd: Annotated[
        str | None, typer.Option(help="Most USD that its shadows may cost; default: 1.")
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="How much worse it may be: accuracy=0.02, failures, fallbacks, cost or seconds."),
    ] = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    rayservice: RayServiceOption = None,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Load an adapter or a fitted file into the running application and route by it, without a restart or a
    lost request.

    First every replica of the adapter's base model loads it, or every router reads the file; routing changes
    only after that. The config file keeps its comments, and FILE.previous keeps the text before the change.
    A fitted file is a gate, or the choice of `plan: auto` (`plan_file`).

    With --shadow or --canary it goes on trial beside the present one. `r2-serve compare` tells how it does,
    and the same command with other shares changes them.

    \b
    Example:  r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml --dry-run
              r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml
              r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml --shadow 0.05
              r2-serve publish /mnt/r2/gates/gsm-0002.json --gate fitted --shadow 0.05
              r2-serve publish /mnt/r2/plans/plan-0002.json
              r2-serve publish /mnt/r2/adapters/dec-0002 --rayservice r2
    """
    target = Target(dashboard, rayservice, timeout_s)
    with plain_errors():
        file = ConfigFile(config)
        shares = _shares(shadow, canary, budget_usd, margin or ())
        if gate is not None or path.is_file():
            change = plan_file_change(
                file.original, path, gate=gate, virtual_models=virtual_model or (), keep=keep, shares=shares
            )
            _route_file(change, file, target, dry_run=dry_run)
            if not dry_run:
                _tell_published(change, config)
            return
        plan = plan_publication(
            file.original, path, virtual_models=virtual_model or (), keep=keep, shares=shares
        )
        _describe(plan)
        if dry_run:
            _show_change(file, plan.routed)
            return
        with target.reached() as cluster:
            carry_out(plan, file, cluster, typer.echo)
    if plan.shares is not None:
        _tell_tried(plan.manifest.name, config)
        return
    back = f"r2-serve rollback --config {config} --module {plan.manifest.module}"
    typer.echo(f"published {plan.manifest.name}. Back: {back}")


def rollback(
    module: Annotated[Module | None, typer.Option(help="decomposer or allocator.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    candidate: Annotated[
        bool, typer.Option("--candidate", help="Take the candidate on trial out; nothing else changes.")
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            help="A loaded adapter, or `base`: the model itself; or an earlier file of the gate. "
            "Default: the one used before."
        ),
    ] = None,
    gate: GateOption = None,
    plan_file: Annotated[
        bool, typer.Option("--plan", help="Go back to an earlier `plan_file`, the choice of `plan: auto`.")
    ] = False,
    virtual_model: VirtualOption = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    rayservice: RayServiceOption = None,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Route back to an earlier adapter that is still loaded, or to an earlier fitted file: one live change of
    the router.

    \b
    Example:  r2-serve rollback --module decomposer --config serve_config.yaml
              r2-serve rollback --module allocator --to alloc-0001
              r2-serve rollback --gate fitted
              r2-serve rollback --candidate
    """
    if [module is not None, gate is not None, plan_file, candidate].count(True) != 1:
        what = "--module decomposer, --module allocator, --gate NAME, --plan or --candidate"
        fail(f"name what to roll back: {what}", status=2)
    target = Target(dashboard, rayservice, timeout_s)
    if candidate:
        _withdraw(config, virtual_model or (), target, dry_run=dry_run)
        return
    with plain_errors():
        file = ConfigFile(config)
        if gate is not None or plan_file:
            targets = virtual_model or ()
            change = plan_file_rollback(file.original, gate=gate, to=to, virtual_models=targets)
            _route_file(change, file, target, dry_run=dry_run)
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
        with target.reached() as cluster:
            carry_back(plan, file, cluster, typer.echo)
    ((old, _), *_) = plan.moves.values()
    forward = f"r2-serve rollback --config {config} --module {module} --to {old}"
    typer.echo(f"rolled back. Forward again: {forward}")


def _route_file(change: FileChange, file: ConfigFile, target: Target, *, dry_run: bool) -> None:
    for name, old in change.moves.items():
        how = f"stays {old}, tries" if change.candidate else f"{old} ->"
        typer.echo(f"{change.place.what} of {name}: {how} {change.file}")
    if dry_run:
        _show_change(file, change.routed)
        return
    with target.reached() as cluster:
        route_file(change, file, cluster, typer.echo)


def _tell_published(change: FileChange, config: Path) -> None:
    if change.candidate is not None:
        _tell_tried(change.candidate, config)
        return
    which = "--plan" if change.place.gate is None else f"--gate {change.place.gate}"
    typer.echo(f"published {change.file}. Back: r2-serve rollback --config {config} {which}")


def _tell_tried(candidate: str, config: Path) -> None:
    typer.echo(f"on trial: {candidate}. How it does: r2-serve compare --config {config}")


def _withdraw(config: Path, virtual_models: Sequence[str], target: Target, *, dry_run: bool) -> None:
    """Take candidates on trial out of the config."""
    with plain_errors():
        file = ConfigFile(config)
        pool = Pool(file.original)
        plan = plan_end(file.original, "withdrawn", pool.router_app, pool.rollouts, virtual_models)
        if dry_run:
            _show_change(file, plan.routed)
            return
        with target.reached() as cluster:
            end_trial(plan, file, cluster, typer.echo)


def _shares(
    shadow: float | None, canary: float | None, budget_usd: str | None, margins: Sequence[str]
) -> TrialShares | None:
    """How the adapter is tried; None if it is used at once. Raises: ConfigError."""
    if shadow is None and canary is None:
        if budget_usd is not None or margins:
            raise ConfigError("--budget-usd and --margin are about trials: give --shadow or --canary too")
        return None
    try:
        usd = None if budget_usd is None else Decimal(budget_usd)
    except InvalidOperation as e:
        raise ConfigError(f"--budget-usd: {budget_usd!r} is not a number") from e
    return TrialShares(shadow or 0.0, canary or 0.0, usd, dict(map(_margin, margins)))


def _margin(text: str) -> tuple[str, float]:
    """A margin such as `cost=0.1`. Raises: ConfigError."""
    name, _, value = text.partition("=")
    try:
        MarginsConfig.model_validate({name: value})
    except ValidationError as e:
        known = ", ".join(MarginsConfig.model_fields)
        raise ConfigError(f"--margin {text}: expected NAME=SHARE, where NAME is one of {known}") from e
    return name, float(value)


def _describe(plan: Publication) -> None:
    manifest = plan.manifest
    codec = f"codec {manifest.codec} version {manifest.codec_version}"
    typer.echo(f"{manifest.name}: {manifest.kind} adapter of {manifest.base}, {codec}, intact")
    for name, old in zip(plan.virtual_models, plan.replaced, strict=True):
        how = f"stays {old}, tries {manifest.name}" if plan.shares else f"{old} -> {manifest.name}"
        typer.echo(f"{manifest.module} of {name}: {how}")
    if plan.dropped:
        typer.echo(f"unloaded from {plan.app}: {', '.join(plan.dropped)}")


def _show_change(file: ConfigFile, text: str) -> None:
    name = str(file.path)
    lines = difflib.unified_diff(file.original.splitlines(True), text.splitlines(True), name, name, n=2)
    typer.echo("".join(lines) + "dry run: nothing was written or deployed")
