"""`r2-serve outcomes` and `r2-serve replay`. Heavy imports wait for the command that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.errors import counted
from r2_serve.ops.command_line import fail, plain_errors

if TYPE_CHECKING:
    from r2_serve.gates.table import OutcomeTable
    from r2_serve.lab.outcomes.book import Outcome

outcomes_app = typer.Typer(
    help="Books of recorded replies: import, merge, grade, describe.", no_args_is_help=True
)


class Format(StrEnum):
    """The formats that `import` reads."""

    recorded = "recorded"
    zeroeval = "zeroeval"
    routerbench = "routerbench"
    csv = "csv"
    jsonl = "jsonl"
    traces = "traces"


class View(StrEnum):
    """What the records of traces are about."""

    models = "models"
    routers = "routers"


class GraderChoice(StrEnum):
    """The graders of a book."""

    math = "math"
    number = "number"
    choice = "choice"
    text = "text"
    literal = "literal"


GraderOption = Annotated[
    GraderChoice | None,
    typer.Option("--grader", "-g", help="How answers are read and compared; default: as the book says."),
]
PricesOption = Annotated[
    Path | None, typer.Option(help="YAML file of lines such as `gpt-4o: [2.5, 10]`, USD per 1M tokens.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The book to write; `.gz` compresses it.")]
BookArgument = Annotated[Path, typer.Argument(help="A book that `r2-serve outcomes import` made.")]


@outcomes_app.command("import")
def import_(
    file_format: Annotated[Format, typer.Argument(metavar="FORMAT", help="The format of the files.")],
    files: Annotated[
        list[str], typer.Argument(help="The files; `.gz` is read too. zeroeval: also MODEL=FILE.")
    ],
    out: OutOption,
    grader: GraderOption = None,
    prices: PricesOption = None,
    model: Annotated[str | None, typer.Option(help="zeroeval: the model of the file.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="csv, jsonl: FIELD=COLUMN, such as reply=output; repeatable.")
    ] = None,
    feedback: Annotated[
        Path | None, typer.Option(help="traces: the file of scores; default: the one in the directory.")
    ] = None,
    by: Annotated[
        View, typer.Option(help="traces: a record of each model's reply, or of each router's answer.")
    ] = View.models,
) -> None:
    """Make a book of the replies in published files or traces: read, grade and price each of them.

    \b
    Formats:  recorded     JSONL of tasks and replies
              zeroeval     a result file of ZeroEval; one model in each file
              routerbench  the CSV of RouterBench, which holds its own verdicts
              csv, jsonl   a reply in each row; columns: model, reply, gold or right, and if you like task,
                           prompt, cost_usd, tokens_in, tokens_out, choices, confidence, ...
              traces       a directory of traces, with the scores of POST /v1/r2/feedback
    Example:  r2-serve outcomes import recorded gsm.jsonl.gz -g number --prices prices.yaml --out gsm.book
              r2-serve outcomes import zeroeval gpt-4o=gpt-4o.json mini=mini.json -g number -o gsm.book
              r2-serve outcomes import csv runs.csv --column reply=output -g text --out runs.book
              r2-serve outcomes import traces /var/r2/traces --out served.book
    """
    from r2_serve.lab.outcomes.book import write_book
    from r2_serve.lab.outcomes.importing import FORMATS, priced, read_prices
    from r2_serve.lab.outcomes.tabular import Source

    with plain_errors():
        by_model = read_prices(prices) if prices else {}
        columns = _columns(column or [])
        records = [
            priced(record, by_model)
            for name, path in map(_named_file, files)
            for record in FORMATS[file_format.value](
                Source(path, name or model, columns, feedback, by.value, _note)
            )
        ]
        if not records:
            fail(f"{', '.join(files)}: there is no reply to import")
        unpriced = sorted({r.model for r in records if r.model not in by_model and not r.cost_usd})
        if prices and unpriced:
            fail(f"{prices} has no price for {', '.join(unpriced)}: add a line for each")
        records = _graded(
            records, grader, needs_grader=file_format not in (Format.routerbench, Format.traces)
        )
        records = _each_once(records)
        if file_format is not Format.traces:
            _note_lacks(records)
        count = write_book(out, records)
    rated = f", {sum(r.score is not None for r in records)} rated" if file_format is Format.traces else ""
    typer.echo(f"written: {out}, {counted(count, 'reply', 'replies')}{rated}. Now: r2-serve replay {out}")


@outcomes_app.command()
def merge(
    books: Annotated[list[Path], typer.Argument(help="Books; of two equal keys the later book's counts.")],
    out: OutOption,
) -> None:
    """Make one book of several, and compare their answers anew.

    \b
    Example:  r2-serve outcomes merge gpt-4o.book qwen.book --out pool.book
    """
    from r2_serve.lab.outcomes.book import read_book, write_book

    with plain_errors():
        found = {record.key: record for book in books for record in read_book(book)}
        count = write_book(out, _graded(list(found.values()), None, needs_grader=False))
    typer.echo(f"written: {out}, {counted(count, 'reply', 'replies')}")


@outcomes_app.command()
def grade(
    book: BookArgument, out: OutOption, grader: GraderOption = None, prices: PricesOption = None
) -> None:
    """Grade a book again, with another grader or a mended one; with --prices also price it again.

    \b
    Example:  r2-serve outcomes grade gsm.book --grader math --out gsm-math.book
    """
    from r2_serve.lab.outcomes.book import read_book, write_book
    from r2_serve.lab.outcomes.importing import priced, read_prices

    with plain_errors():
        by_model = read_prices(prices) if prices else {}
        records = [priced(record, by_model) for record in read_book(book)]
        count = write_book(out, _graded(records, grader, needs_grader=True))
    typer.echo(f"written: {out}, {counted(count, 'reply', 'replies')}")


@outcomes_app.command()
def describe(book: BookArgument) -> None:
    """Print what a book holds: tasks, and each model's replies, accuracy and cost.

    \b
    Example:  r2-serve outcomes describe gsm.book
    """
    from rich.console import Console

    from r2_serve.lab.outcomes.describing import print_description

    with plain_errors():
        print_description(book, Console(markup=False))


def replay(
    book: BookArgument,
    splits: Annotated[int, typer.Option(min=1, help="Random halvings of the tasks.")] = 10,
    reference: Annotated[
        str | None, typer.Option(help="The model to compare with; default: the target's, or the best one.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A promise to keep, such as 'within 1 point of gpt-4o'.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="The confidence of the promise.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the first split.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as an HTML page.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all numbers, a line for each row.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the table for booktabs.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Directory for vector figures: SVG and PDF.")] = None,
    margin: Annotated[
        float, typer.Option(min=0.01, help="Points that a row may lose and still be 'not worse'.")
    ] = 1.0,
) -> None:
    """Answer a book's tasks under every policy, without a model: fit on one half, report on the other.

    Without --target, the fitted gate is the cheapest that is expected to be as accurate as the reference.
    A book that holds one reply for each task, with the probability of that choice (`propensity`), gives
    inverse-propensity and doubly robust estimates of each model instead.

    \b
    Example:  r2-serve replay gsm.book --splits 10 --reference gpt-4o --json gsm.json --html gsm.html
              r2-serve replay gsm.book --target "within 1 point of gpt-4o" --confidence 0.95 --splits 20
    """
    from rich.console import Console

    from r2_serve.files import write_whole
    from r2_serve.lab.outcomes.book import read_book
    from r2_serve.lab.outcomes.figures import report_of
    from r2_serve.lab.outcomes.goals import parse_target
    from r2_serve.lab.outcomes.offpolicy import holds_choices, with_verdicts
    from r2_serve.lab.outcomes.page import COLUMNS, cells, page, print_report, title
    from r2_serve.lab.outcomes.replay import replay as run
    from r2_serve.lab.outcomes.table import table_of
    from r2_serve.lab.reports.export import csv_text, latex_table, write_figure

    with plain_errors():
        promise = parse_target(target, confidence) if target else None
        table = table_of(with_verdicts(read_book(book)))
        if holds_choices(table):
            _estimate(table, json_file)
            return
        with _progress("splits", splits) as done:
            found = run(
                table,
                reference=reference,
                target=promise,
                num_splits=splits,
                seed=seed,
                progress=done,
            )
        report = report_of(found, book.name, margin / 100)
        print_report(report, Console(markup=False))
        if json_file is not None:
            write_whole(json_file, report.model_dump_json(indent=2))
        if html is not None:
            write_whole(html, page(report))
        if csv is not None:
            write_whole(csv, csv_text(map(dict, report.rows)))
        if latex is not None:
            write_whole(latex, latex_table(COLUMNS, map(cells, report.rows), title(report)))
        if figures is not None:
            from r2_serve.lab.outcomes.plot import front_figure

            write_figure(front_figure(report), figures, f"{book.stem}-front")


def _estimate(table: OutcomeTable, json_file: Path | None) -> None:
    """Print what each model would have reached, from replies of the models that were asked."""
    from rich.console import Console

    from r2_serve.files import write_whole
    from r2_serve.lab.outcomes.offpolicy import Estimates, estimates
    from r2_serve.lab.outcomes.page import print_estimates

    found = Estimates(tasks=len(table), models=tuple(estimates(table)))
    print_estimates(found, Console(markup=False))
    if json_file is not None:
        write_whole(json_file, found.model_dump_json(indent=2))


def _named_file(text: str) -> tuple[str | None, Path]:
    """The model and the path of `MODEL=FILE`; a file whose own name has the sign has no model."""
    name, sign, rest = text.partition("=")
    return (name, Path(rest)) if sign and not Path(text).exists() else (None, Path(text))


def _columns(pairs: list[str]) -> dict[str, str]:
    """`FIELD=COLUMN` pairs as a mapping."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        fail(f"--column {wrong[0]}: expected FIELD=COLUMN, such as reply=output", status=2)
    return dict(pair.split("=", 1) for pair in pairs)


def _note(text: str) -> None:
    typer.secho(text, fg="yellow", err=True)


def _each_once(records: list[Outcome]) -> list[Outcome]:
    """The records of a book: of two with one task, step and model the later one, which is said."""
    found = {record.key: record for record in records}
    if repeats := len(records) - len(found):
        _note(f"{counted(repeats, 'row')} replaced by later ones of the same task, step and model")
    return list(found.values())


def _note_lacks(records: list[Outcome]) -> None:
    """Say what the replies lack that `replay` and `fit` compare."""
    from r2_serve.grading.answers import reader

    free = sorted({record.model for record in records} - {r.model for r in records if r.cost_usd})
    if free:
        _note(f"no cost: {', '.join(free)}; give --prices, or a column cost_usd, unless they are free")
    read = reader("number")
    unread = sorted({r.gold for r in records if r.grader == "number" and r.gold and not read(r.gold)})
    if unread:
        such = f"such as {unread[0]!r}: no reply to it can be right; write it with a decimal point"
        _note(f"no number: {counted(len(unread), 'right answer')}, {such}")
    if unknown := sum(record.right is None and not record.step for record in records):
        lack = "a task needs `gold`, or each reply `right`"
        _note(f"no verdict: {unknown} of {counted(len(records), 'reply', 'replies')}; {lack}")


def _graded(records: list[Outcome], grader: GraderChoice | None, *, needs_grader: bool) -> list[Outcome]:
    from r2_serve.lab.outcomes.grading import graded, is_bare_step

    if grader is None and any(record.grader is None and not is_bare_step(record) for record in records):
        if needs_grader:
            fail("which grader? give --grader math, number, choice, text or literal", status=2)
        return records
    num_tasks = len({(record.task, record.step) for record in records})
    with _progress("tasks graded", num_tasks) as done:
        return graded(records, grader.value if grader else None, lambda count, total: done(count))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A line on standard error that counts up, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)
