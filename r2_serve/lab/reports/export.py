"""Tables and figures for a paper: CSV with every number, LaTeX with the printed table, vector figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from r2_serve.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_KINDS = ("svg", "pdf")
"""Both are vector formats; the PDF is for LaTeX."""
_ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "µ": r"\textmu{}",
    "<": r"\textless{}",
    "±": r"\textpm{}",
}


@dataclass(frozen=True)
class ReportTable:
    """A table that a report prints."""

    name: str
    """The name of its files."""
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The cells as they are printed."""
    records: Sequence[Mapping[str, object]] = ()
    """The same with every number, for CSV; without them CSV has the printed cells."""

    @property
    def csv(self) -> str:
        return csv_text(self.records or [dict(zip(self.columns, row, strict=True)) for row in self.rows])

    @property
    def latex(self) -> str:
        return latex_table(self.columns, self.rows, self.caption)


def write_tables(tables: Iterable[ReportTable], directory: Path) -> list[Path]:
    """Write each table as NAME.csv and NAME.tex; the paths. Raises: OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for table in tables:
        for suffix, text in ((".csv", table.csv), (".tex", table.latex)):
            paths.append(directory / f"{table.name}{suffix}")
            write_whole(paths[-1], text)
    return paths


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """CSV with one line for each row; pairs become two columns, and mappings are left out.

    The columns are those of the first row that has any; a later row without one leaves it empty.
    """
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in row.items():
        match value:
            case (low, high) if name.split("_ci95")[0] != name:
                found[f"{name}_low"], found[f"{name}_high"] = low, high
            case dict() | tuple() | list():
                continue
            case _:
                found[name] = value
    return found


def flat(record: BaseModel) -> dict[str, object]:
    """The fields of a record, those of records in it by names such as `latency_s.p95`."""
    found: dict[str, object] = {}
    for name, value in record:
        inner = flat(value) if isinstance(value, BaseModel) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": each for key, each in inner.items()}
    return found


def latex_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A `table` environment for the package booktabs; the first column is left-aligned."""
    lines = [" & ".join(map(latex, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{latex(caption)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"    \toprule",
            f"    {' & '.join(map(latex, columns))} \\\\",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex(text: str) -> str:
    """A text in which no character is a command of LaTeX."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def write_figure(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write a figure as SVG and as PDF; the paths. Raises: OSError."""
    from matplotlib import rc_context

    from r2_serve.lab.reports.svg import STYLE

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.{kind}" for kind in FIGURE_KINDS]
    with rc_context(STYLE):
        for path in paths:
            undated = "Date" if path.suffix == ".svg" else "CreationDate"
            figure.savefig(path, metadata={undated: None})
    return paths
