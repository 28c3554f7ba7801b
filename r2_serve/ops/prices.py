"""`r2-serve prices`: what models cost by the offline table, and where a config says something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.config import HostedEngineConfig, ModelConfig
from r2_serve.config.prices import NEEDED, PRICE_OF, ListedModel, all_listed, listed, table_name
from r2_serve.ops.command_line import fail, plain_errors

MAX_ROWS = 200
"""Most models that are shown at once; the table has two thousand."""


@dataclass(frozen=True)
class Finding:
    """What the table says of one model of a config."""

    model: str
    text: str
    is_difference: bool = False
    """Whether a written price is not that of the table."""


def prices(
    words: Annotated[
        list[str] | None, typer.Argument(help="A provider and parts of a model's name, such as: openai mini.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="A Serve config whose prices to compare with the table.")
    ] = None,
) -> None:
    """Show what hosted models cost by the table that comes with R2, or check a config against it.

    A hosted model of a config whose prices are not written has those of the table. The table is offline and
    dated; providers change prices, and yours may differ. Exit status of --check: 1 if a price differs.

    \b
    Example:  r2-serve prices openai gpt
              r2-serve prices --check serve_config.yaml
    """
    if check is not None:
        _check(check)
        return
    found = list(_matching([word.lower() for word in words or ()]))
    if not found:
        fail(f"{table_name()} has no model like {' '.join(words or ())}")
    if len(found) > MAX_ROWS:
        providers = ", ".join(dict.fromkeys(entry.provider for entry in found))
        typer.echo(f"{len(found)} models by {table_name()}: name a provider or a part of a model's name")
        typer.echo(f"providers: {providers}")
        return
    _show(found)


def findings(models: dict[str, tuple[ModelConfig, dict[str, object]]]) -> Iterator[Finding]:
    """What differs between the written prices of hosted models and the table.

    `models` holds each model of a config by name, read and as it is written.
    """
    for name, (model, written) in models.items():
        if not isinstance(model.engine, HostedEngineConfig):
            continue
        entry = listed(model.engine)
        if entry is None:
            yield Finding(name, "not in the table: check the provider's own list")
        elif not any(price in written for price in NEEDED):
            yield Finding(name, f"taken from the table ({entry.provider} {entry.id})")
        else:
            yield from _differences(name, model, entry)


def _differences(name: str, model: ModelConfig, entry: ListedModel) -> Iterator[Finding]:
    """One finding for each price, or one that says that all agree."""
    is_same = True
    for price in PRICE_OF:
        ours, theirs = getattr(model, price), entry.fields.get(price)
        if theirs is None or ours == theirs:
            continue
        is_same = False
        got = "is not written" if ours is None else f"is {ours:f}"
        yield Finding(name, f"{price} {got}; the table has {theirs}", is_difference=True)
    if entry.fields.get("price_tiers") and not model.price_tiers:
        is_same = False
        yield Finding(name, "price_tiers are not written; the table has some for long prompts", True)
    if is_same:
        yield Finding(name, f"as in the table ({entry.provider} {entry.id})")


def _check(path: Path) -> None:
    from r2_serve.serve_config import load_without_ray

    with plain_errors():
        config = load_without_ray(path)
    written = {str(model["name"]): model for model in _written_models(config.raw)}
    found = list(findings({model.name: (model, written[model.name]) for model in config.router.models}))
    typer.echo(f"{path}: prices as of {config.router.prices_as_of or 'an unstated date'}, by {table_name()}")
    for finding in found:
        typer.secho(f"  {finding.model}: {finding.text}", fg="yellow" if finding.is_difference else None)
    if any(finding.is_difference for finding in found):
        raise typer.Exit(1)


def _written_models(raw: dict[str, object]) -> Iterator[dict[str, object]]:
    """The models of a Serve config as they are written."""
    applications = raw["applications"]
    assert isinstance(applications, list)
    for application in applications:
        yield from (application.get("args") or {}).get("models", ())


def _matching(words: list[str]) -> Iterator[ListedModel]:
    """The models that have all words. A word that names a provider means its models, and no others."""
    providers = {entry.provider.lower() for entry in all_listed()}.intersection(words)
    parts = [word for word in words if word not in providers]
    for entry in all_listed():
        is_meant = not providers or entry.provider.lower() in providers
        if is_meant and all(part in f"{entry.provider} {entry.id}".lower() for part in parts):
            yield entry


def _show(found: list[ListedModel]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = f"USD per 1M tokens by {table_name()}"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in ("provider", "model"):
        table.add_column(column, overflow="fold")
    for column in ("in", "out", "cached", "context", "long prompts"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in found:
        usd = [entry.fields.get(name) for name in (*NEEDED, "usd_per_mtok_cached_read")]
        shown = [f"{value:f}" if isinstance(value, Decimal) else "" for value in usd]
        context, tiers = entry.fields.get("context_tokens"), entry.fields.get("price_tiers")
        table.add_row(entry.provider, entry.id, *shown, str(context or ""), "dearer" if tiers else "")
    Console(markup=False).print(table)
