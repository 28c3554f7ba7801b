"""`r2-train fit`: a gate, or the choice of `plan: auto`, from recorded outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.ops.command_line import plain_errors

if TYPE_CHECKING:
    from r2_train.fit import FitRequest


def fit(
    book: Annotated[
        Path, typer.Argument(help="A book (r2-serve outcomes import), or with --planned the run of an eval.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file of the fitted policy.")],
    reference: Annotated[
        str | None, typer.Option(help="The model to be as accurate as; default: the target's, or the best.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A promise to keep, such as 'within 1 point of gpt-4o'.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="The confidence of the promise.")] = 0.95,
    prices: Annotated[
        Path | None, typer.Option(help="YAML file of prices that replace the book's, USD per 1M tokens.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave this model out; repeatable.")] = None,
    planned: Annotated[
        str | None, typer.Option(help="Fit `plan: auto` instead: the policy that answered with a plan.")
    ] = None,
    direct: Annotated[
        str | None, typer.Option(help="With --planned: the policy that asked the default model directly.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
) -> None:
    """Fit a gate on recorded outcomes: which models are asked, in which order, and when to stop.

    With --planned and --direct it fits `plan: auto`: which prompts are worth a plan. It takes seconds, so fit
    again when a price changes or a model comes or goes.

    \b
    Example:  r2-train fit gsm.book --target "within 1 point of gpt-4o" --confidence 0.95 --out gate.json
              r2-train fit gsm.book --reference gpt-4o --without claude-3.5-sonnet --out gate.json
              r2-train fit runs/eval --planned r2 --direct single:gpt-4o --out plan.json
    """
    from r2_serve.gates.stored import write_policy
    from r2_train.fit import FitRequest, fit_book

    if (planned is None) != (direct is None):
        raise typer.BadParameter("--planned and --direct belong together: give both or none")
    request = FitRequest(
        book=book,
        reference=reference,
        target=target,
        confidence=confidence,
        prices=prices,
        without=tuple(without or ()),
        seed=seed,
        ways=(planned, direct) if planned is not None and direct is not None else None,
    )
    if request.ways is not None:
        _fit_plan(request, out)
        return
    with plain_errors("r2-train"):
        found = fit_book(request)
        write_policy(out, found)
    policy = found.policy
    typer.echo(f"asked in turn: {policy.order}")
    ratio = policy.expected_cost_ratio
    share = "" if ratio is None else f" at {100 * ratio:.1f} % of its cost"
    points = f"{100 * policy.expected_difference:+.2f} points of accuracy"
    typer.echo(f"expected against {policy.reference}: {points}{share}")
    if ratio is None:
        typer.echo(f"costs are not compared: {policy.reference} costs nothing in this book")
    typer.echo(f"written: {out}. Now: gates: {{NAME: {{file: {out}}}}} in a virtual model (docs/gates.md)")


def _fit_plan(request: FitRequest, out: Path) -> None:
    from r2_serve.router.fitted_plan import write_fitted_plan
    from r2_train.fit import fit_plan_file

    with plain_errors("r2-train"):
        found = fit_plan_file(request)
        write_fitted_plan(out, found)
    typer.echo(f"{100 * found.expected_planned:.0f} % of {found.tasks} tasks are planned")
    typer.echo(
        f"expected: {100 * found.expected_difference:+.2f} points at {100 * found.expected_cost_ratio:.1f} % "
        f"of the cost of {found.direct}"
    )
    typer.echo(f"written: {out}; name it in plan_file of a virtual model with plan: auto")
