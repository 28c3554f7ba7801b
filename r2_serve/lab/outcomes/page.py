"""A replay as a table for the terminal, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from r2_serve.errors import counted
from r2_serve.lab.outcomes.figures import ReplayReport, RowFigures
from r2_serve.lab.outcomes.offpolicy import Estimate, Estimates
from r2_serve.lab.outcomes.replay import CONFIDENCE, FITTED
from r2_serve.lab.reports.export import ReportTable
from r2_serve.lab.reports.html import document, note, picture, small
from r2_serve.lab.reports.html import table as html_table
from r2_serve.lab.reports.terminal import figures_table
from r2_serve.lab.statistics import Interval

COLUMNS = ("policy", "accuracy", "points (95 % CI)", "is", "cost, % (CI)", "asked", "USD/1K")
_IN_TERMINAL = len(COLUMNS) - 2
"""Columns for which 80 signs have room."""
MODEL_COLUMNS = ("model", "accuracy", "USD/1K", "replies")
SPLIT_COLUMNS = ("split", "difference", "95 % CI", "cost", "expected", "asked in this order")


def cells(row: RowFigures) -> tuple[str, ...]:
    """One row in the order of `COLUMNS`."""
    return (
        row.policy,
        _percent(row.accuracy),
        f"{_points(row.accuracy_difference)} ({_bounds(row.accuracy_difference_ci95)})",
        row.verdict,
        _ratio(row),
        f"{row.models_asked:.1f}",
        f"{row.cost_usd_per_1000:.3f}",
    )


def _ratio(row: RowFigures) -> str:
    if row.cost_ratio is None or row.cost_ratio_ci95 is None:
        return "-"
    return f"{_short(row.cost_ratio)} ({'-'.join(map(_short, row.cost_ratio_ci95))})"


def _short(ratio: float) -> str:
    return f"{100 * ratio:.1f}" if ratio < 0.9995 else f"{100 * ratio:.0f}"


def title(report: ReplayReport) -> str:
    """The book, its size and the reference, in one line."""
    return (
        f"{report.book} · {counted(report.tasks, 'task')}, {counted(len(report.models), 'model')} · "
        f"{counted(report.num_splits, 'split')} · "
        f"reference {report.reference}"
    )


def notes(report: ReplayReport) -> Iterator[str]:
    """Sentences without which the figures would mislead."""
    yield (
        "Fitted on one half of the tasks, reported on the other; means over the splits. Intervals: 95 % "
        "bootstrap over tasks. Points and cost: against the reference, on the same tasks."
    )
    yield (
        f"'not worse': the bootstrap proves a loss below {100 * report.margin:g} points (one-sided, 2.5 %); "
        "'undecided': the tasks are too few to tell."
    )
    if left_out := report.tasks - report.tasks_compared:
        yield (
            f"{left_out} tasks are left out of fit and report, as {report.reference} has no reply to them. "
            "Other missing replies are neither right nor wrong: a gate goes on to its next model."
        )
    if report.gap_closed is not None:
        yield (
            f"At any cost, a fitted gate closes {_percent(report.gap_closed)} of the accuracy gap between "
            f"the best single model and the oracle."
        )
    if report.target is not None and report.confidence is not None:
        yield (
            f"Promise: {report.target} at {_percent(report.confidence)}; kept in {report.promises_kept} of "
            f"{counted(report.num_splits, 'split')} (broken: the split's paired 95 % interval lies wholly "
            "below it)."
        )
    if CONFIDENCE not in (row.policy for row in report.rows):
        yield "The book holds no confidences, so there is no confidence cascade."
    yield f"Made {report.made}."


def print_report(report: ReplayReport, console: Console) -> None:
    """Print the table and the notes."""
    styles = ["bold" if row.policy == FITTED else "" if row.on_front else "dim" for row in report.rows]
    console.print(Text(title(report), style="bold"))
    rows = [cells(row)[:_IN_TERMINAL] for row in report.rows]
    caption = "dim: another row is as accurate and cheaper"
    table = figures_table(COLUMNS[:_IN_TERMINAL], rows, caption=caption, styles=styles, has_edge=False)
    console.print(table)
    for text in notes(report):
        console.print(Text(text))


ESTIMATE_COLUMNS = ("model", "replies", "effective", "IPS accuracy", "doubly robust", "USD/1K")


def print_estimates(found: Estimates, console: Console) -> None:
    """Print the estimates of each model, and why some are refused."""
    console.print(
        Text(f"{found.tasks} tasks with one reply each: estimates with 95 % intervals", style="bold")
    )
    rows = [
        (
            model.model,
            str(model.num_replies),
            f"{model.effective_sample:.0f}",
            _estimated(model.accuracy_ips),
            _estimated(model.accuracy_dr),
            "-" if model.cost_usd_dr is None else f"{1000 * model.cost_usd_dr.value:.3f}",
        )
        for model in found.models
    ]
    console.print(figures_table(ESTIMATE_COLUMNS, rows))
    for model in found.models:
        if model.refused is not None:
            console.print(Text(f"{model.model} is refused: {model.refused}."))


def _estimated(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    half = (estimate.ci95[1] - estimate.ci95[0]) / 2
    return f"{100 * estimate.value:.1f} ± {100 * half:.1f} %"


def tables(report: ReplayReport) -> Iterator[ReportTable]:
    """The tables of the page."""
    caption = title(report)
    rows = [cells(row) for row in report.rows]
    yield ReportTable("policies", caption, COLUMNS, rows, list(map(dict, report.rows)))
    splits = [dict(split) for split in report.splits]
    yield ReportTable(
        "splits",
        f"{caption}. The fitted gate in each split.",
        SPLIT_COLUMNS,
        list(_split_rows(report)),
        splits,
    )
    models = [dict(model) for model in report.models]
    yield ReportTable(
        "models", f"{caption}. Each model alone.", MODEL_COLUMNS, list(_model_rows(report)), models
    )


def _model_rows(report: ReplayReport) -> Iterator[tuple[str, ...]]:
    for m in report.models:
        yield m.model, _percent(m.accuracy), f"{m.cost_usd_per_1000:.3f}", str(m.num_replies)


def page(report: ReplayReport) -> str:
    """The whole report as HTML."""
    from r2_serve.lab.outcomes.plot import front_plot

    styles = ["ours" if row.policy == FITTED else "" if row.on_front else "beaten" for row in report.rows]
    body = [
        small(title(report)),
        *map(note, notes(report)),
        "<h3>Accuracy against cost</h3>",
        picture(front_plot(report)),
        "<h3>Policies</h3>",
        html_table(COLUMNS, map(cells, report.rows), styles=styles),
        small("Grey: another row is at least as accurate and cheaper; the oracle beats none."),
        "<h3>The fitted gate in each split</h3>",
        html_table(SPLIT_COLUMNS, _split_rows(report), *SPLIT_COLUMNS[-1:]),
        "<h3>Models alone, over the whole book</h3>",
        html_table(MODEL_COLUMNS, _model_rows(report)),
    ]
    return document("R2 replay", "\n".join(body))


def _split_rows(report: ReplayReport) -> Iterator[tuple[str, ...]]:
    for split in report.splits:
        yield (
            str(split.split),
            _points(split.accuracy_difference),
            _bounds(split.accuracy_difference_ci95),
            _percent(split.cost_ratio),
            _points(split.expected_difference),
            split.order,
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _bounds(bounds: Interval) -> str:
    return f"{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}"
