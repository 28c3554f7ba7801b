"""`r2-serve keys`: client keys of the endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from r2_serve.ops.command_line import fail

keys_app = typer.Typer(help="Client keys of the endpoint.", no_args_is_help=True)


@keys_app.callback()
def _commands() -> None:
    """Keeps `new` a command of its own while it is the only one."""


@keys_app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose key it is; shown in logs.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model it may ask for; repeat for more. Default: all."),
    ] = None,
    budget_usd: Annotated[str | None, typer.Option(help="The most it may spend in a period.")] = None,
    period: Annotated[
        str, typer.Option(help="When the budget is full again: total (never), month or day.")
    ] = "total",
) -> None:
    """Make a key: shown once on standard error, its entry for `server.keys_file` on standard output.

    \b
    Example:  r2-serve keys new --name alice --budget-usd 10 --period month --model r2 >> keys.yaml
    """
    from pydantic import ValidationError

    from r2_serve.http.keys import entry_text, new_key

    fields = {"models": model, "budget_usd": budget_usd, "budget_period": period}
    try:
        key, entry = new_key(name, **{field: value for field, value in fields.items() if value})
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        fail(f"{first['loc'][0]}: got {first['input']!r}: {first['msg']}")
    typer.echo(entry_text(entry), nl=False)
    typer.secho(f"key of {name}, shown this once: {key}", err=True)
